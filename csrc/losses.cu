#include "losses.h"

#include <algorithm>
#include <cmath>

#include "cuda.h"

namespace bdaudit {
namespace {

// What some of a row's logits come to: the largest and its class, and over e = exp(x - largest) the sums of e, but for
// the largest's own, and of e (x - largest). -inf adds nothing; a NaN makes the sums NaN.
struct Sums {
    float largest = -INFINITY;
    int prediction = 0x7fffffff;
    float others = 0, weighted = 0;
};

__device__ Sums joined(const Sums& a, const Sums& b) {
    // Of two equal logits the first class wins, whatever the order in which they come.
    const bool b_wins = b.largest > a.largest || (b.largest == a.largest && b.prediction < a.prediction);
    Sums to = b_wins ? b : a;
    const Sums& other = b_wins ? a : b;
    if (other.largest == -INFINITY) {
        to.others += other.others;  // 0, or NaN
        return to;
    }
    const float below = other.largest - to.largest;
    const float scale = expf(below);
    to.others += (other.others + 1.0f) * scale;
    // Logits that far below weigh nothing; their product of infinity and zero must not become NaN.
    if (scale > 0) to.weighted += scale * (other.weighted + (other.others + 1.0f) * below);
    return to;
}

__device__ void add(Sums& sums, float x, int at) {
    if (x == -INFINITY) return;
    sums = joined(sums, isnan(x) ? Sums{-INFINITY, at, x, 0} : Sums{x, at, 0, 0});
}

// `lanes` neighbouring threads share a row, so that a warp reads one stretch of memory whatever the number of classes.
template <int lanes, class T>
__global__ void __launch_bounds__(256) losses_kernel(const SampleLosses task) {
    const int lane = threadIdx.x % lanes;
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x / lanes;
    const std::int64_t rounds = (task.n + step - 1) / step;
    std::int64_t row = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / lanes;
    // Every thread of a warp takes part in every exchange, also past the last row.
    for (std::int64_t round = 0; round < rounds; ++round, row += step) {
        const bool there = row < task.n;
        const T* logits = static_cast<const T*>(task.logits) + (there ? row : 0) * task.c;
        Sums sums;
        if (there) {
            for (std::int64_t at = lane; at < task.c; at += lanes) add(sums, to_float(logits[at]), static_cast<int>(at));
        }
#pragma unroll
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
            Sums other;
            other.largest = __shfl_xor_sync(0xffffffff, sums.largest, distance);
            other.prediction = __shfl_xor_sync(0xffffffff, sums.prediction, distance);
            other.others = __shfl_xor_sync(0xffffffff, sums.others, distance);
            other.weighted = __shfl_xor_sync(0xffffffff, sums.weighted, distance);
            sums = joined(sums, other);
        }
        if (!there || lane != 0) continue;
        const std::int64_t label = task.labels[row];
        const bool valid = isfinite(sums.largest) && !isnan(sums.others);
        const bool known = label >= 0 && label < task.c;
        const float log_total = log1pf(sums.others);
        const float ce = valid && known ? (sums.largest - to_float(logits[label])) + log_total : NAN;
        const float total = sums.others + 1.0f;
        const float missed = label == sums.prediction ? sums.others / total : -expm1f(-ce);
        task.values[row] = ce;
        task.values[task.n + row] = sce_ce_weight * ce + missed * sce_log_floor;
        task.values[2 * task.n + row] = valid ? log_total - sums.weighted / total : NAN;
        task.values[3 * task.n + row] = valid ? 1.0f / total : NAN;
        task.prediction[row] = valid ? sums.prediction : -1;
        if (!valid) atomicAdd(reinterpret_cast<unsigned long long*>(task.nans), 1ull);
    }
}

template <class T>
void launch(const SampleLosses& task, std::int64_t processors, cudaStream_t stream) {
    constexpr int threads = 256;
    const int lanes = task.c <= 8 ? 2 : task.c <= 32 ? 4 : task.c <= 64 ? 8 : 32;
    const std::int64_t wanted = (task.n * lanes + threads - 1) / threads;
    const auto blocks = static_cast<unsigned>(std::min(wanted, processors * 8));
    const auto kernel = lanes == 2   ? losses_kernel<2, T>
                        : lanes == 4 ? losses_kernel<4, T>
                        : lanes == 8 ? losses_kernel<8, T>
                                     : losses_kernel<32, T>;
    kernel<<<blocks, threads, 0, stream>>>(task);
}

}  // namespace

void sample_losses_cuda(const SampleLosses& task, int device, std::uintptr_t stream) {
    if (task.n <= 0) return;
    const OnDevice guard(device);
    const auto start = task.bfloat16 ? launch<std::uint16_t> : launch<float>;
    start(task, guard.processors(), reinterpret_cast<cudaStream_t>(stream));
    check(cudaGetLastError(), "launching sample_losses");
}

}  // namespace bdaudit
