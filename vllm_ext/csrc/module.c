/* vllm_ext._C: the kernels under Python, with addresses and sizes as numbers. vllm_ext._custom_ops checks them. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

/* Arguments by position; -1 stands for an error, which is looked for once at the end. */
static int64_t number(PyObject *const *args, Py_ssize_t i) { return PyLong_AsLongLong(args[i]); }
static void *address(PyObject *const *args, Py_ssize_t i) { return (void *)(uintptr_t)PyLong_AsUnsignedLongLong(args[i]); }
static float real(PyObject *const *args, Py_ssize_t i) { return (float)PyFloat_AsDouble(args[i]); }

static int has_arguments(const char *name, Py_ssize_t given, Py_ssize_t expected)
{
    if (given == expected)
        return 1;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, given %zd", name, expected, given);
    return 0;
}

#define FINISH                                                                                                         \
    if (PyErr_Occurred())                                                                                              \
        return NULL;

static PyObject *py_rms_norm(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("rms_norm", count, 8))
        return NULL;
    float *out = address(args, 0), *x = address(args, 1), *residual = address(args, 2), *weight = address(args, 3);
    int64_t rows = number(args, 4), size = number(args, 5);
    float eps = real(args, 6);
    int threads = (int)number(args, 7);
    FINISH
    rms_norm(out, x, residual, weight, rows, size, eps, threads);
    Py_RETURN_NONE;
}

static PyObject *py_silu_and_mul(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("silu_and_mul", count, 5))
        return NULL;
    float *out = address(args, 0), *x = address(args, 1);
    int64_t rows = number(args, 2), size = number(args, 3);
    int threads = (int)number(args, 4);
    FINISH
    silu_and_mul(out, x, rows, size, threads);
    Py_RETURN_NONE;
}

static PyObject *py_rotary_embedding(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("rotary_embedding", count, 9))
        return NULL;
    float *out = address(args, 0), *x = address(args, 1), *cache = address(args, 3);
    int64_t *positions = address(args, 2), rows = number(args, 4), heads = number(args, 5), size = number(args, 6);
    int64_t x_stride = number(args, 7);
    int threads = (int)number(args, 8);
    FINISH
    rotary_embedding(out, x, positions, cache, rows, heads, size, x_stride, threads);
    Py_RETURN_NONE;
}

static PyObject *py_store_kv(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("store_kv", count, 11))
        return NULL;
    kv_cache cache = {address(args, 0), number(args, 1), number(args, 2), number(args, 3)};
    float *key = address(args, 4), *value = address(args, 5);
    int64_t *slots = address(args, 6), tokens = number(args, 7);
    int64_t key_stride = number(args, 8), value_stride = number(args, 9);
    int threads = (int)number(args, 10);
    FINISH
    store_kv(cache, key, value, slots, tokens, key_stride, value_stride, threads);
    Py_RETURN_NONE;
}

static PyObject *py_paged_decode(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("paged_decode", count, 19))
        return NULL;
    float *out = address(args, 0), *query = address(args, 1);
    kv_cache cache = {address(args, 2), number(args, 3), number(args, 4), number(args, 5)};
    decode_batch batch = {
        .tables = address(args, 6),
        .lens = address(args, 7),
        .tokens = address(args, 8),
        .rows = address(args, 9),
        .count = number(args, 10),
        .group = number(args, 11),
        .table_stride = number(args, 12),
        .query_stride = number(args, 13),
        .out_stride = number(args, 14),
        .window = number(args, 15),
        .scale = real(args, 16),
        .cap = real(args, 17),
    };
    int threads = (int)number(args, 18);
    FINISH
    Py_BEGIN_ALLOW_THREADS
    paged_decode(out, query, cache, batch, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_linear(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    if (!has_arguments("linear", count, 9))
        return NULL;
    linear_args a = {
        .out = address(args, 0),
        .x = address(args, 1),
        .weight = address(args, 2),
        .bias = address(args, 3),
        .m = number(args, 4),
        .n = number(args, 5),
        .k = number(args, 6),
        .x_stride = number(args, 7),
    };
    int threads = (int)number(args, 8);
    FINISH
    Py_BEGIN_ALLOW_THREADS
    linear(a, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_linear_panel(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return has_arguments("linear_panel", count, 0) ? PyLong_FromLong(can_multiply() ? LINEAR_PANEL : 0) : NULL;
}

#define FUNCTION(name, text) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, text}

static PyMethodDef methods[] = {
    FUNCTION(rms_norm, "rms_norm(out, x, residual, weight, rows, size, eps, threads)"),
    FUNCTION(silu_and_mul, "silu_and_mul(out, x, rows, size, threads)"),
    FUNCTION(rotary_embedding, "rotary_embedding(out, x, positions, cache, rows, heads, size, x_stride, threads)"),
    FUNCTION(store_kv, "store_kv(cache, kv_heads, block_size, size, key, value, slots, tokens, key_stride, "
                       "value_stride, threads)"),
    FUNCTION(paged_decode, "paged_decode(out, query, cache, kv_heads, block_size, size, tables, lens, tokens, rows, count, "
                           "group, table_stride, query_stride, out_stride, window, scale, cap, threads)"),
    FUNCTION(linear, "linear(out, x, weight, bias, m, n, k, x_stride, threads)"),
    FUNCTION(linear_panel, "linear_panel(): rows of a weight in one panel; 0 where linear() cannot run"),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "vllm_ext._C", .m_doc = "Kernels for processors.", .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module); }
