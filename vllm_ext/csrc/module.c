/* vllm_ext._C: the kernels under Python, with addresses and sizes as numbers. vllm_ext._custom_ops checks them. */
#include "binding.h"

static PyObject *invoke(const kernel *k, PyObject *const *args, Py_ssize_t given)
{
    Py_ssize_t count = (Py_ssize_t)strlen(k->format);
    if (given != count + 1)
        return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, given %zd", k->name, count + 1, given);
    call c = {.kernel = k};
    for (Py_ssize_t i = 0; i < count; i++)
        switch (k->format[i]) {
        case 'p':
            c.values[i].p = (void *)(uintptr_t)PyLong_AsUnsignedLongLong(args[i]);
            break;
        case 'n':
            c.values[i].n = PyLong_AsLongLong(args[i]);
            break;
        default:
            c.values[i].f = (float)PyFloat_AsDouble(args[i]);
        }
    int threads = (int)PyLong_AsLong(args[count]), failed = 0;
    /* Each conversion may have failed; it is enough to look once. */
    if (PyErr_Occurred() || record(&c) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel num_threads(threads) if (k->numbers(c.values) > WORTH_A_THREAD)
    k->run(c.values, &failed);
    Py_END_ALLOW_THREADS
    if (failed)
        return index_error(k);
    Py_RETURN_NONE;
}

/* A kernel of kernels.h under Python, where it takes what `format` says, and the number of threads. `count`: the numbers that
   it computes with arguments v. */
#define KERNEL(name, format, count)                                                                                    \
    static int64_t numbers_of_##name(const value *v) { return count; }                                                 \
    static const kernel kernel_##name = {#name, format, run_##name, numbers_of_##name};                                \
    static PyObject *py_##name(PyObject *self, PyObject *const *args, Py_ssize_t given)                                \
    {                                                                                                                  \
        return invoke(&kernel_##name, args, given);                                                                    \
    }

static void run_rms_norm(const value *v, int *failed)
{
    rms_norm(v[0].p, v[1].p, v[2].p, v[3].p, v[4].n, v[5].n, v[6].n, v[7].n, v[8].f, (element)v[9].n);
}
KERNEL(rms_norm, "ppppnnnnfn", v[4].n * v[5].n)

static void run_silu_and_mul(const value *v, int *failed)
{
    silu_and_mul(v[0].p, v[1].p, v[2].n, v[3].n, (element)v[4].n);
}
KERNEL(silu_and_mul, "ppnnn", v[2].n * v[3].n)

static void run_rotary_embedding(const value *v, int *failed)
{
    rotary_embedding(v[0].p, v[1].p, v[2].p, v[3].p, v[4].n, v[5].n, v[6].n, v[7].n, v[8].n, (element)v[9].n,
                     failed);
}
KERNEL(rotary_embedding, "ppppnnnnnn", v[4].n * v[5].n * v[6].n)

static void run_reshape_and_cache(const value *v, int *failed)
{
    kv_cache cache = {v[0].p, v[1].n, v[2].n, v[3].n, (element)v[4].n};
    reshape_and_cache(cache, v[5].p, v[6].p, v[7].p, v[8].n, v[9].n, v[10].n, v[11].n, failed);
}
KERNEL(reshape_and_cache, "pnnnnpppnnnn", v[8].n * v[1].n * v[3].n)

/* What both kinds of attention take; argument 9 is their own. */
static attention_batch batch_of(const value *v)
{
    return (attention_batch){
        .out = v[0].p,
        .query = v[1].p,
        .tables = v[7].p,
        .lens = v[8].p,
        .rows = v[10].p,
        .count = v[11].n,
        .group = v[12].n,
        .table_stride = v[13].n,
        .query_stride = v[14].n,
        .out_stride = v[15].n,
        .window = v[16].n,
        .scale = v[17].f,
        .cap = v[18].f,
    };
}

static void run_paged_attention_decode(const value *v, int *failed)
{
    kv_cache cache = {v[2].p, v[3].n, v[4].n, v[5].n, (element)v[6].n};
    attention_batch batch = batch_of(v);
    batch.tokens = v[9].p;
    paged_attention_decode(cache, batch);
}
KERNEL(paged_attention_decode, "pppnnnnppppnnnnnnff", INT64_MAX)

static void run_paged_attention_prefill(const value *v, int *failed)
{
    kv_cache cache = {v[2].p, v[3].n, v[4].n, v[5].n, (element)v[6].n};
    attention_batch batch = batch_of(v);
    batch.starts = v[9].p;
    paged_attention_prefill(cache, batch);
}
KERNEL(paged_attention_prefill, "pppnnnnppppnnnnnnff", INT64_MAX)

static void run_linear(const value *v, int *failed)
{
    linear_args a = {v[0].p, v[1].p, v[2].p, v[3].p, v[4].p, v[5].n, v[6].n, v[7].n, v[8].n, (element)v[9].n};
    linear(a);
}
KERNEL(linear, "pppppnnnnn", INT64_MAX)

static void run_embedding(const value *v, int *failed)
{
    embedding(v[0].p, v[1].p, v[2].p, v[3].n, v[4].n, v[5].n, (element)v[6].n, failed);
}
KERNEL(embedding, "pppnnnn", v[3].n * v[5].n)

static void run_argmax(const value *v, int *failed)
{
    argmax(v[0].p, v[1].p, v[2].n, v[3].n, v[4].n, (element)v[5].n);
}
KERNEL(argmax, "ppnnnn", v[2].n * v[3].n)

static PyObject *py_linear_panel(PyObject *self, PyObject *number)
{
    long e = PyLong_AsLong(number);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(linear_panel((element)e));
}

static PyObject *py_linear_converts(PyObject *self, PyObject *number)
{
    long e = PyLong_AsLong(number);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(linear_converts((element)e));
}

static PyObject *py_draw_tokens(PyObject *self, PyObject *args)
{
    unsigned long long out, logits, rows, scales, top_k, top_p, uniform;
    long long count, size, stride;
    int threads, done;
    if (!PyArg_ParseTuple(args, "KKKKKKKLLLi", &out, &logits, &rows, &scales, &top_k, &top_p, &uniform, &count, &size,
                          &stride, &threads))
        return NULL;
    draw_batch batch = {
        .logits = (void *)(uintptr_t)logits,
        .rows = (void *)(uintptr_t)rows,
        .scales = (void *)(uintptr_t)scales,
        .top_k = (void *)(uintptr_t)top_k,
        .top_p = (void *)(uintptr_t)top_p,
        .uniform = (void *)(uintptr_t)uniform,
        .count = count,
        .size = size,
        .stride = stride,
    };
    Py_BEGIN_ALLOW_THREADS
    done = draw_tokens((void *)(uintptr_t)out, batch, threads);
    Py_END_ALLOW_THREADS
    if (!done)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

#define METHOD(name, text) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, text}

static PyMethodDef methods[] = {
    METHOD(rms_norm, "rms_norm(out, x, residual, weight, rows, size, group, x_stride, eps, element, threads)"),
    METHOD(silu_and_mul, "silu_and_mul(out, x, rows, size, element, threads)"),
    METHOD(rotary_embedding, "rotary_embedding(out, x, positions, cache, rows, heads, size, x_stride, limit, element, "
                             "threads)"),
    METHOD(reshape_and_cache, "reshape_and_cache(cache, kv_heads, block_size, size, element, key, value, slots, tokens, key_stride, "
                     "value_stride, blocks, threads)"),
    METHOD(paged_attention_decode, "paged_attention_decode(out, query, cache, kv_heads, block_size, size, element, tables, lens, tokens, rows, "
                         "count, group, table_stride, query_stride, out_stride, window, scale, cap, threads)"),
    METHOD(paged_attention_prefill, "paged_attention_prefill(out, query, cache, kv_heads, block_size, size, element, tables, lens, starts, rows, "
                          "count, group, table_stride, query_stride, out_stride, window, scale, cap, threads)"),
    METHOD(linear, "linear(out, x, weight, bias, converted, m, n, k, x_stride, element, threads)"),
    METHOD(embedding, "embedding(out, ids, table, count, rows, size, element, threads)"),
    METHOD(argmax, "argmax(out, x, rows, size, x_stride, element, threads)"),
    {"linear_panel", py_linear_panel, METH_O,
     "linear_panel(element): rows of a weight in one panel; 0 where linear() cannot run"},
    {"linear_converts", py_linear_converts, METH_O, "linear_converts(element): whether linear() needs room for x in float32"},
    {"draw_tokens", py_draw_tokens, METH_VARARGS,
     "draw_tokens(out, logits, rows, scales, top_k, top_p, uniform, count, size, stride, threads)"},
    {"start_recording", py_start_recording, METH_NOARGS, "record the kernels that this thread calls from now on"},
    {"stop_recording", py_stop_recording, METH_NOARGS, "the graph of what was recorded"},
    {"addresses", py_addresses, METH_O, "addresses(graph): those that each call reads or writes, a list per call"},
    {"move", py_move, METH_VARARGS, "move(graph, begin, end, target): what was in [begin, end) is at target from now on"},
    {"replay", py_replay, METH_VARARGS, "replay(graph, threads): make the calls again, in order"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "vllm_ext._C", .m_doc = "Kernels for processors.", .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&module); }
