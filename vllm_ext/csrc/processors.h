/* How functions are compiled for the processors that they may run on. */
#ifndef VLLM_EXT_PROCESSORS_H
#define VLLM_EXT_PROCESSORS_H

/* One copy of a function for each generation of processors; the loader picks. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
