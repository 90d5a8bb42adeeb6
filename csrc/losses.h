// Everything that a sample's logits say about its label, in one reading of them.
#pragma once

#include <cstdint>

#include "cpu.h"

namespace bdaudit {

// Per row, with p = softmax(logits) and y its label:
//     ce          -log p_y
//     sce         0.1 ce + rce, where rce = -log(1e-4) (1 - p_y): cross-entropy the other way round, log 0 being log 1e-4
//     entropy     -sum p log p
//     confidence  max p
//     prediction  the first class of the largest logit
// A row with a NaN, with +inf, or of nothing but -inf has no probabilities: its values are NaN, its prediction is -1,
// and it is counted in `nans`. A row whose label is outside [0, c) has no ce and no sce, NaN too, and is not counted.
struct SampleLosses {
    const void* logits;  // (n, c), float or bfloat16
    const std::int64_t* labels;  // (n)
    float* values;               // (4, n): ce, sce, entropy, confidence
    std::int64_t* prediction;    // (n)
    std::int64_t* nans;          // (1), set to 0 by the caller
    std::int64_t n, c;           // c >= 1
    std::int64_t bfloat16;       // 1: the logits are bfloat16
};

inline constexpr float sce_ce_weight = 0.1f;
inline constexpr float sce_log_floor = 9.2103403719761836f;  // -log(1e-4)

void sample_losses_cpu(const SampleLosses& task, int threads, Isa isa = best_isa());
void sample_losses_cuda(const SampleLosses& task, int device, std::uintptr_t stream);

}  // namespace bdaudit
