"""AttentionBackendEnum and register_backend: vLLM's names, kept by owner, safe to repeat and to send to a process."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import pickle

import pytest
from support import spawned_backend

from vllm_ext.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm_ext.attention.backends.sdpa import SDPABackend
from vllm_ext.errors import RegistrationError
from vllm_ext.registry.owners import loading
from vllm_ext.registry.scope import Scope, use_scope

SDPA_PATH = "vllm_ext.attention.backends.sdpa.SDPABackend"


class Mine:
    """Stands for a backend; the registry does not look into classes."""


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def owned_by(plugin: str, distribution: str, *registration: object) -> None:
    with loading(plugin, distribution):
        register_backend(*registration)


class TestMembers:
    def test_in_tree_backends_are_members_with_a_class(self):
        member = AttentionBackendEnum.SDPA

        assert (member.name, member.value, member.get_path()) == ("SDPA", SDPA_PATH, SDPA_PATH)
        assert member.get_path(include_classname=False) == "vllm_ext.attention.backends.sdpa"
        assert member.get_class() is SDPABackend
        assert not member.is_overridden()

    def test_there_is_one_object_for_each_name_and_it_equals_its_name(self):
        assert AttentionBackendEnum["SDPA"] is AttentionBackendEnum.SDPA
        assert AttentionBackendEnum("SDPA") is AttentionBackendEnum.SDPA
        assert AttentionBackendEnum.SDPA == "SDPA"
        assert AttentionBackendEnum.SDPA != AttentionBackendEnum.CPU_ATTN

    def test_it_is_listed_like_an_enumeration(self):
        names = [member.name for member in AttentionBackendEnum]

        assert names[:3] == ["CPU_ATTN", "SDPA", "REFERENCE"]
        assert len(AttentionBackendEnum) == len(names)
        assert list(AttentionBackendEnum.__members__) == names
        assert "SDPA" in AttentionBackendEnum
        assert "NONSENSE" not in AttentionBackendEnum

    def test_names_that_plugins_for_vllm_mention_are_there_and_must_be_registered_before_use(self):
        for name in ("CUSTOM", "FLASH_ATTN", "TORCH_SDPA"):
            assert not AttentionBackendEnum[name].is_registered()
            assert AttentionBackendEnum[name].value == ""
        with pytest.raises(ValueError, match="'CUSTOM' must be registered before use: register_backend"):
            AttentionBackendEnum.CUSTOM.get_path()

    def test_an_unknown_name_is_an_error_with_the_closest_and_all_known_ones(self):
        with pytest.raises(ValueError, match=r"'SPDA' \(did you mean 'SDPA'\?\); registered: CPU_ATTN, REF"):
            AttentionBackendEnum["SPDA"]
        with pytest.raises(AttributeError, match=r"'SPDA' \(did you mean 'SDPA'\?\)"):
            _ = AttentionBackendEnum.SPDA

    def test_settings_may_write_it_in_any_case(self):
        register_backend("MyOwn", "a.B")

        assert AttentionBackendEnum.parse("sdpa") is AttentionBackendEnum.SDPA
        assert AttentionBackendEnum.parse("MYOWN") is AttentionBackendEnum["MyOwn"]


class TestRegistering:
    def test_a_new_name_is_a_member(self):
        register_backend("MINE", "package.module.Class")

        assert "MINE" in AttentionBackendEnum
        assert AttentionBackendEnum.MINE.get_path() == AttentionBackendEnum.MINE.value == "package.module.Class"
        assert not AttentionBackendEnum.MINE.is_overridden()

    def test_any_number_of_names_can_be_added(self):
        for number in range(20):
            register_backend(f"MINE_{number}", f"package.module.Class{number}")

        assert [AttentionBackendEnum[f"MINE_{n}"].get_path()[-2:] for n in (3, 19)] == ["s3", "19"]

    def test_a_member_is_overridden_until_that_is_cleared(self):
        register_backend(AttentionBackendEnum.SDPA, "package.module.Class")

        assert AttentionBackendEnum.SDPA.is_overridden()
        assert AttentionBackendEnum.SDPA.get_path() == "package.module.Class"
        assert AttentionBackendEnum.SDPA.value == SDPA_PATH

        AttentionBackendEnum.SDPA.clear_override()

        assert not AttentionBackendEnum.SDPA.is_overridden()
        assert AttentionBackendEnum.SDPA.get_path() == SDPA_PATH

    def test_an_added_name_can_be_overridden_too(self):
        register_backend("MINE", "a.B")
        register_backend(AttentionBackendEnum.MINE, "c.D")

        assert AttentionBackendEnum.MINE.get_path() == "c.D"
        AttentionBackendEnum.MINE.clear_override()
        assert AttentionBackendEnum.MINE.get_path() == "a.B"

    @pytest.mark.parametrize("backend", ["MINE", AttentionBackendEnum.CUSTOM])
    def test_without_a_path_it_decorates_the_class(self, backend):
        assert register_backend(backend)(Mine) is Mine

        assert AttentionBackendEnum[backend].get_path() == f"{__name__}.Mine"
        assert AttentionBackendEnum[backend].get_class() is Mine

    def test_with_a_path_the_decorator_changes_nothing(self):
        assert register_backend("MINE", "a.B")(Mine) is Mine

        assert AttentionBackendEnum.MINE.get_path() == "a.B"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("NOT A NAME", "a.B"), "'NOT A NAME' is no name; it takes an identifier"),
            (("class", "a.B"), "'class' is no name"),
            (("_HIDDEN", "a.B"), "'_HIDDEN' is no name"),
            ((3, "a.B"), "3 is no name"),
            (("get_path", "a.B"), "'get_path': AttentionBackendEnum has an attribute of this name"),
            (("title", "a.B"), "'title': AttentionBackendEnum has an attribute of this name"),
            (("SDPA", "a.B"), "'SDPA' exists already; to override it, register AttentionBackendEnum.SDPA"),
            (("CUSTOM", "a.B"), "'CUSTOM' exists already"),
            (("Sdpa", "a.B"), "'Sdpa' differs from 'SDPA' in case only"),
            (("MINE", "Class"), "'Class' is not a class path 'package.module.Class'"),
            (("MINE", "not a path"), "'not a path' is not a class path"),
            (("MINE", Mine), "is not a class path"),
            (("MINE", "a.B", True), "this engine has no Mamba layers"),
        ],
    )
    def test_what_cannot_be_registered_is_refused(self, arguments, message):
        before = list(AttentionBackendEnum)

        with pytest.raises(RegistrationError, match=message):
            register_backend(*arguments)

        assert list(AttentionBackendEnum) == before

    def test_a_class_that_other_processes_could_not_import_is_refused(self):
        class Local:
            pass

        with pytest.raises(RegistrationError, match="Local' is not a class at the top level of a module"):
            register_backend("LOCAL")(Local)

    def test_a_class_that_cannot_be_imported_is_named_with_its_owner(self):
        owned_by("ops", "acme", "MINE", "a_module_that_is_missing.Backend")

        with pytest.raises(RegistrationError, match="'MINE', registered by plugin 'ops' of acme: 'a_module_.*No mod"):
            AttentionBackendEnum.MINE.get_class()


class TestOwners:
    def test_repeating_a_registration_says_nothing(self, warnings):
        for _ in range(2):
            owned_by("ops", "acme", "MINE", "a.B")
            owned_by("ops", "acme", AttentionBackendEnum.SDPA, "a.B")

        assert warnings.records == []
        assert AttentionBackendEnum.SDPA.registered_by == "plugin 'ops' of acme"

    def test_a_distribution_is_the_same_owner_while_it_is_loaded_and_later(self, warnings):
        owned_by("ops", "acme-npu", AttentionBackendEnum.SDPA, "a.B")
        exec(
            "from vllm_ext.attention.backends.registry import *\nregister_backend(AttentionBackendEnum.SDPA, 'a.B')",
            {"__name__": "acme_npu.ops"},
        )

        assert warnings.records == []
        AttentionBackendEnum.SDPA.clear_override()
        assert not AttentionBackendEnum.SDPA.is_overridden()

    @pytest.mark.parametrize("backend", ["MINE", AttentionBackendEnum.SDPA])
    def test_another_owner_is_reported_with_both_names(self, warnings, backend):
        owned_by("ops", "acme", backend, "a.B")
        owned_by("kernels", "zeta", backend, "c.D")
        owned_by("kernels", "zeta", backend, "c.D")

        (record,) = warnings.records
        assert f"{str(backend)!r}: plugin 'kernels' of zeta registers c.D, and plugin 'ops' of acme" in record.message
        assert AttentionBackendEnum[backend].get_path() == "c.D"

    def test_two_owners_that_agree_are_not_reported(self, warnings):
        owned_by("ops", "acme", "MINE", "a.B")
        owned_by("kernels", "zeta", "MINE", "a.B")

        assert warnings.records == []

    def test_each_platform_sees_its_own_registrations(self):
        acme = Scope.of("Acme", ["zeta"])
        zeta = Scope.of("zeta", ["acme"])
        cpu = Scope.of("vllm-ext", ["acme", "zeta"])
        for distribution in ("acme", "zeta"):
            owned_by("ops", distribution, AttentionBackendEnum.SDPA, f"{distribution}.Sdpa")
            owned_by("ops", distribution, f"OF_{distribution}", f"{distribution}.Own")

        seen = {}
        for name, scope in {"acme": acme, "zeta": zeta, "cpu": cpu}.items():
            with use_scope(scope):
                added = [member.name for member in AttentionBackendEnum if member.startswith("OF_")]
                seen[name] = (AttentionBackendEnum.SDPA.get_path(), added)

        assert seen == {
            "acme": ("acme.Sdpa", ["OF_acme"]),
            "zeta": ("zeta.Sdpa", ["OF_zeta"]),
            "cpu": (SDPA_PATH, []),
        }

    def test_an_own_registration_is_taken_before_that_of_a_general_plugin(self):
        owned_by("ops", "acme", AttentionBackendEnum.SDPA, "acme.Sdpa")
        owned_by("fast", "general", AttentionBackendEnum.SDPA, "general.Sdpa")

        with use_scope(Scope.of("acme", [])):
            assert AttentionBackendEnum.SDPA.get_path() == "acme.Sdpa"
        with use_scope(Scope.of("vllm-ext", ["acme"])):
            assert AttentionBackendEnum.SDPA.get_path() == "general.Sdpa"

    def test_clearing_leaves_the_overrides_for_other_platforms(self):
        owned_by("ops", "acme", AttentionBackendEnum.SDPA, "acme.Sdpa")

        with use_scope(Scope.of("vllm-ext", ["acme"])):
            AttentionBackendEnum.SDPA.clear_override()
        with use_scope(Scope.of("acme", [])):
            assert AttentionBackendEnum.SDPA.get_path() == "acme.Sdpa"


class TestOtherProcesses:
    @staticmethod
    def sent(member: AttentionBackendEnum, *, with_plugin: bool) -> object:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (with_plugin, pickle.dumps(member), theirs)
        process = context.Process(target=spawned_backend.receive, args=arguments)
        process.start()
        try:
            assert ours.poll(60), "the process answered nothing"
            return ours.recv()
        finally:
            process.join()

    @pytest.mark.parametrize("name", ["SPAWNED", "CUSTOM"])
    def test_a_member_comes_back_as_itself_where_the_same_is_registered(self, name):
        spawned_backend.register()

        answer = self.sent(AttentionBackendEnum[name], with_plugin=True)

        assert answer == (name, True, spawned_backend.PATH)

    def test_where_nothing_registered_it_the_error_says_what_is_missing(self):
        spawned_backend.register()

        answer = self.sent(AttentionBackendEnum.SPAWNED, with_plugin=False)

        assert "no attention backend is called 'SPAWNED'" in answer
        assert "has to have run in this process" in answer

    def test_copies_are_the_member_itself(self):
        member = AttentionBackendEnum.SDPA

        assert copy.deepcopy({"backend": member})["backend"] is member
        assert pickle.loads(pickle.dumps(member)) is member
