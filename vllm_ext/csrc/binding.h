/* What module.c, which makes calls, and graph.c, which records and repeats them, share. */
#ifndef VLLM_EXT_BINDING_H
#define VLLM_EXT_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

/* One argument; which of them it is, is said by a letter of the kernel's format: p, n or f. */
typedef union {
    void *p;
    int64_t n;
    float f;
} value;

#define MOST_ARGUMENTS 24

typedef struct {
    const char *name, *format;
    void (*run)(const value *v, int *failed); /* by all threads; failed: an index was outside of its table */
    int64_t (*numbers)(const value *v);       /* that it computes; few are done before a second thread has begun */
} kernel;

typedef struct {
    const kernel *kernel;
    value values[MOST_ARGUMENTS];
} call;

/* Keeps the call if this thread records; -1 with an exception set where there is no room. */
int record(const call *c);

/* Sets the exception for a call that failed; NULL. */
PyObject *index_error(const kernel *k);

/* Methods of the module. */
PyObject *py_start_recording(PyObject *self, PyObject *unused);
PyObject *py_stop_recording(PyObject *self, PyObject *unused);
PyObject *py_addresses(PyObject *self, PyObject *capsule);
PyObject *py_move(PyObject *self, PyObject *args);
PyObject *py_replay(PyObject *self, PyObject *args);

#endif
