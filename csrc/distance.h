// Class centres of features, and how far each sample is from the nearest one: BSD's OSS score.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace bdaudit {

// out[i] = min over centres k != exclude[i] of the Euclidean distance from features[i] to centres[k], summed over
// squared differences in fp32 and never by expanding them, which would cancel for near points. A centre that is not
// finite (the mean of no sample) is no centre; NaN features give NaN. With no centre left the distance
// is infinite.
struct MinClassDistance {
    const void* features;         // (n, d), float or bfloat16
    const float* centres;         // (k, d)
    const std::int64_t* exclude;  // (n): a centre not to be used; anything outside [0, k) excludes none. Null: no row has one.
    float* out;                   // (n)
    std::int64_t n, d, k;
    std::int64_t bfloat16;  // 1: the features are bfloat16
};

// The rows are cut into `segments` stretches, each summed in double and in its order, and the sums are added in theirs:
// the result does not depend on the number of threads.
struct ClassMeans {
    const void* features;        // (n, d), float or bfloat16
    const std::int64_t* labels;  // (n); a row whose label is outside [0, k) counts for no class
    float* means;                // (k, d): NaN for a class without rows
    std::int64_t* counts;        // (k), set to 0 by the caller
    double* scratch;             // CUDA: (segments, k, d), the stretches' sums. CPU: unused
    std::int64_t n, d, k, segments;
    std::int64_t bfloat16;  // 1: the features are bfloat16
};

void min_class_distance_cpu(const MinClassDistance& task, int threads, Isa isa = best_isa());
void min_class_distance_cuda(const MinClassDistance& task, int device, std::uintptr_t stream);

void class_means_cpu(const ClassMeans& task, int threads, Isa isa = best_isa());
void class_means_cuda(const ClassMeans& task, int device, std::uintptr_t stream);

}  // namespace bdaudit
