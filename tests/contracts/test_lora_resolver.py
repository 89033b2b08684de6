"""LoRA resolvers: who is asked, in which order, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import logging

import pytest

from vllm_ext import LoRARequest, LoRAResolver, LoRAResolverRegistry
from vllm_ext.contracts.lora_resolver import adapter_directory
from vllm_ext.errors import InvalidRequest, PluginLoadError, PluginNotFound, RegistrationError
from vllm_ext.registry.owners import loading


class Resolver(LoRAResolver):
    """Answers with ``answer``, or raises it; ``asked`` is shared by all."""

    asked: list[tuple[str, str, str]] = []  # noqa: RUF012 - emptied for each test

    def __init__(self, name, answer=None):
        self.name, self.answer = name, answer

    async def resolve_lora(self, base_model_name, lora_name):
        self.asked.append((self.name, base_model_name, lora_name))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def request(name="poet"):
    return LoRARequest(name, 1, f"/adapters/{name}")


@pytest.fixture
def register():
    Resolver.asked.clear()

    def register(**answers):
        for name, answer in answers.items():
            with loading(name, f"dist-{name}"):
                LoRAResolverRegistry.register_resolver(name, Resolver(name, answer))

    return register


def resolve(name="poet"):
    return asyncio.run(LoRAResolverRegistry.resolve_lora("base", name))


def asked():
    return [name for name, *_ in Resolver.asked]


def test_they_are_asked_in_the_order_of_registration_until_one_knows(register):
    register(zebra=None, ant=request(), bee=request("other"))

    assert resolve() == request()
    assert Resolver.asked == [("zebra", "base", "poet"), ("ant", "base", "poet")]
    assert LoRAResolverRegistry.get_supported_resolvers() == ["zebra", "ant", "bee"]


def test_registering_again_keeps_the_place(register, caplog):
    register(a=None, b=None)
    register(a=request())

    assert resolve() == request()
    assert asked() == ["a"]
    assert caplog.messages == []


def test_what_nobody_knows_is_nothing(register):
    assert resolve() is None
    register(a=None)
    assert resolve() is None


def test_one_that_fails_is_reported_and_the_next_is_asked(register, caplog):
    register(a=OSError("no route"), b=request())

    with caplog.at_level(logging.WARNING):
        assert resolve() == request()

    assert caplog.messages == [
        "LoRA adapter 'poet' for 'base': resolver 'a' (plugin 'a' of dist-a) failed: OSError: no route"
    ]


def test_a_failure_is_the_answer_where_nobody_else_knows(register):
    register(a=SystemExit(3), b=None, c="/adapters/poet")

    with pytest.raises(PluginLoadError) as caught:
        resolve()

    assert str(caught.value) == (
        "LoRA adapter 'poet' for 'base' was not found: resolver 'a' (plugin 'a' of dist-a) failed: SystemExit: 3; "
        "resolver 'c' (plugin 'c' of dist-c) answered '/adapters/poet', which is no LoRARequest"
    )


def test_an_interrupt_passes(register):
    register(a=KeyboardInterrupt(), b=request())

    with pytest.raises(KeyboardInterrupt):
        resolve()


@pytest.mark.parametrize("resolver", [Resolver, object(), lambda base, name: None])
def test_what_is_no_resolver_is_refused(resolver):
    with pytest.raises(RegistrationError, match="is not an instance of a subclass of vllm_ext.contracts.lora_resolver"):
        LoRAResolverRegistry.register_resolver("odd", resolver)

    assert LoRAResolverRegistry.get_supported_resolvers() == []


def test_a_name_is_a_name():
    with pytest.raises(RegistrationError, match="LoRA resolver '' is not a name"):
        LoRAResolverRegistry.register_resolver("", Resolver("a"))


def test_one_can_be_asked_for_by_its_name(register):
    register(files=request())

    assert LoRAResolverRegistry.get_resolver("files").name == "files"
    with pytest.raises(
        PluginNotFound, match=r"no LoRA resolver 'file' .*\(did you mean 'files'\?\); registered: files"
    ):
        LoRAResolverRegistry.get_resolver("file")


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/../../secret", "", " ", ".", "a/..", "out", "a\0b"])
def test_a_name_that_leads_out_of_the_directory_is_refused(tmp_path, name):
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidRequest, match="is not a name"):
        adapter_directory(tmp_path / "root", name)


def test_a_name_within_the_directory_is_found_where_it_is(tmp_path):
    (tmp_path / "team" / "poet").mkdir(parents=True)
    (tmp_path / "file").touch()

    assert adapter_directory(tmp_path, "team/poet") == tmp_path / "team" / "poet"
    assert adapter_directory(tmp_path, "nobody") is None
    assert adapter_directory(tmp_path, "file") is None


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (("", 1, "/a"), "lora_name is empty"),
        (("a", 0, "/a"), "lora_int_id of 'a' is 0; it takes a whole number from 1 on"),
        (("a", True, "/a"), "lora_int_id of 'a' is True"),
        (("a", "1", "/a"), "lora_int_id of 'a' is '1'"),
        (("a", 1, ""), "lora_path of 'a' is empty"),
    ],
)
def test_an_adapter_has_a_name_a_number_and_a_place(values, fault):
    with pytest.raises(InvalidRequest, match=fault):
        LoRARequest(*values)
