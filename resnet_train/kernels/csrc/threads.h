// OpenMP where the compiler has it, and one thread where it has not (Apple's clang).

#pragma once

#if defined(_OPENMP)
#include <omp.h>
constexpr int kOpenMP = 1;
#else
inline int omp_get_max_threads() { return 1; }
inline int omp_get_num_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
constexpr int kOpenMP = 0;
#endif

extern "C" int has_openmp() { return kOpenMP; }
