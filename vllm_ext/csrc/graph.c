/* Calls of kernels are recorded while they are made, and the record is replayed by one call, at the same addresses or at
   others. That spares Python's part, which is a third of a small step. */
#include "binding.h"

/* The calls of this thread go here, too, while it records. */
typedef struct {
    call *calls;
    Py_ssize_t count, room;
} graph;

static _Thread_local graph *recording;

int record(const call *c)
{
    graph *g = recording;
    if (!g)
        return 0;
    if (g->count == g->room) {
        Py_ssize_t room = g->room ? 2 * g->room : 128;
        call *calls = PyMem_RawRealloc(g->calls, sizeof(call) * (size_t)room);
        if (!calls)
            return PyErr_NoMemory(), -1;
        g->calls = calls, g->room = room;
    }
    g->calls[g->count++] = *c;
    return 0;
}

PyObject *index_error(const kernel *k)
{
    return PyErr_Format(PyExc_IndexError, "%s: an index is outside of the table", k->name);
}

#define GRAPH "vllm_ext._C.graph"

static void free_graph(graph *g)
{
    if (g)
        PyMem_RawFree(g->calls);
    PyMem_RawFree(g);
}

static void free_capsule(PyObject *capsule) { free_graph(PyCapsule_GetPointer(capsule, GRAPH)); }

PyObject *py_start_recording(PyObject *self, PyObject *unused)
{
    if (recording)
        return PyErr_Format(PyExc_RuntimeError, "this thread records already");
    recording = PyMem_RawCalloc(1, sizeof(graph));
    if (!recording)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyObject *py_stop_recording(PyObject *self, PyObject *unused)
{
    graph *g = recording;
    if (!g)
        return PyErr_Format(PyExc_RuntimeError, "this thread does not record");
    recording = NULL;
    PyObject *capsule = PyCapsule_New(g, GRAPH, free_capsule);
    if (!capsule)
        free_graph(g);
    return capsule;
}

PyObject *py_addresses(PyObject *self, PyObject *capsule)
{
    graph *g = PyCapsule_GetPointer(capsule, GRAPH);
    PyObject *all = g ? PyList_New(0) : NULL;
    for (Py_ssize_t i = 0; all && i < g->count; i++) {
        const char *format = g->calls[i].kernel->format;
        PyObject *of_call = PyList_New(0);
        for (int a = 0; of_call && format[a]; a++)
            if (format[a] == 'p') {
                PyObject *number = PyLong_FromVoidPtr(g->calls[i].values[a].p);
                if (!number || PyList_Append(of_call, number) < 0)
                    Py_CLEAR(of_call);
                Py_XDECREF(number);
            }
        if (!of_call || PyList_Append(all, of_call) < 0)
            Py_CLEAR(all);
        Py_XDECREF(of_call);
    }
    return all;
}

PyObject *py_move(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    unsigned long long begin, end, target;
    if (!PyArg_ParseTuple(args, "OKKK", &capsule, &begin, &end, &target))
        return NULL;
    graph *g = PyCapsule_GetPointer(capsule, GRAPH);
    if (!g)
        return NULL;
    for (Py_ssize_t i = 0; i < g->count; i++)
        for (int a = 0; g->calls[i].kernel->format[a]; a++) {
            value *v = g->calls[i].values + a;
            if (g->calls[i].kernel->format[a] == 'p' && (uintptr_t)v->p >= begin && (uintptr_t)v->p < end)
                v->p = (void *)((uintptr_t)v->p - begin + target);
        }
    Py_RETURN_NONE;
}

PyObject *py_replay(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    int threads;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &threads))
        return NULL;
    graph *g = PyCapsule_GetPointer(capsule, GRAPH);
    if (!g)
        return NULL;
    const kernel *failed = NULL;
    Py_BEGIN_ALLOW_THREADS
    /* One team for all calls: a thread that has done its part waits for the others, and is not sent away and woken. */
#pragma omp parallel num_threads(threads)
    for (Py_ssize_t i = 0; i < g->count; i++) {
        int of_call = 0;
        g->calls[i].kernel->run(g->calls[i].values, &of_call);
        if (of_call)
#pragma omp atomic write
            failed = g->calls[i].kernel;
    }
    Py_END_ALLOW_THREADS
    if (failed)
        return index_error(failed);
    Py_RETURN_NONE;
}
