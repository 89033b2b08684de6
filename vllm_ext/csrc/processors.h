/* How functions are compiled for the processors that they may run on. */
#ifndef VLLM_EXT_PROCESSORS_H
#define VLLM_EXT_PROCESSORS_H

/* The newest generation of processors that is built for: that of x86-64, and 5 with products of bfloat16. Tests build for
   older ones, to see on a new processor what an old one computes. */
#ifndef GENERATION
#define GENERATION 5
#endif
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define BUILT_FOR(generation) (GENERATION >= (generation))
#else
#define BUILT_FOR(generation) 0
#endif

/* One copy of a function for each generation; the loader picks. */
#if BUILT_FOR(4)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif BUILT_FOR(3)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#endif
