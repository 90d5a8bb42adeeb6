#include "distance.h"

#include <algorithm>
#include <cmath>

#include "cuda.h"

namespace bdaudit {
namespace {

constexpr int warp = 32;
constexpr int rows_at_once = 2;
constexpr int centres_at_once = 12;

__device__ float warp_sum(float value) {
#pragma unroll
    for (int distance = warp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffff, value, distance);
    return value;
}

// A warp takes two rows at a time and up to twelve centres, so that each is read once for the other.
template <class T>
__global__ void __launch_bounds__(256) distance_kernel(const MinClassDistance task) {
    const int lane = threadIdx.x % warp;
    const std::int64_t step = std::int64_t{gridDim.x} * blockDim.x / warp * rows_at_once;
    std::int64_t row = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / warp * rows_at_once;
    for (; row < task.n; row += step) {
        const T* x[rows_at_once];
        float best[rows_at_once];
#pragma unroll
        for (int r = 0; r < rows_at_once; ++r) {
            x[r] = static_cast<const T*>(task.features) + min(row + r, task.n - 1) * task.d;
            best[r] = INFINITY;
        }
        for (std::int64_t first = 0; first < task.k; first += centres_at_once) {
            const auto many = static_cast<int>(min(task.k - first, std::int64_t{centres_at_once}));
            float sums[rows_at_once][centres_at_once] = {};
            float finite[centres_at_once] = {};  // stays 0 while the centre's values are finite
            for (std::int64_t at = lane; at < task.d; at += warp) {
                float value[rows_at_once];
#pragma unroll
                for (int r = 0; r < rows_at_once; ++r) value[r] = to_float(x[r][at]);
#pragma unroll
                for (int k = 0; k < centres_at_once; ++k) {
                    if (k >= many) break;
                    const float centre = __ldg(task.centres + (first + k) * task.d + at);
                    finite[k] += centre * 0.0f;
#pragma unroll
                    for (int r = 0; r < rows_at_once; ++r) {
                        const float difference = value[r] - centre;
                        sums[r][k] += difference * difference;
                    }
                }
            }
#pragma unroll
            for (int k = 0; k < centres_at_once; ++k) {
                if (k >= many) break;
                const bool centre = warp_sum(finite[k]) == 0.0f;
#pragma unroll
                for (int r = 0; r < rows_at_once; ++r) {
                    const float sum = warp_sum(sums[r][k]);
                    const std::int64_t own = min(row + r, task.n - 1);
                    const bool excluded = task.exclude && task.exclude[own] == first + k;
                    if (centre && !excluded && !(sum >= best[r])) best[r] = sum;  // keeps a NaN
                }
            }
        }
#pragma unroll
        for (int r = 0; r < rows_at_once; ++r) {
            if (lane == r && row + r < task.n) task.out[row + r] = sqrtf(best[r]);
        }
    }
}

// The sums of one segment of rows, 32 columns a block: a warp to a row, each warp with sums of its own in shared memory.
template <class T>
__global__ void sums_kernel(const ClassMeans task, std::int64_t first_class, std::int64_t classes) {
    extern __shared__ double sums[];  // (warps, classes, 32)
    const int lane = threadIdx.x % warp, own = threadIdx.x / warp, warps = blockDim.x / warp;
    for (std::int64_t i = threadIdx.x; i < warps * classes * warp; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    const std::int64_t column = std::int64_t{blockIdx.x} * warp + lane;
    const std::int64_t begin = task.n * blockIdx.y / gridDim.y, end = task.n * (blockIdx.y + 1) / gridDim.y;
    for (std::int64_t row = begin + own; row < end; row += warps) {
        const std::int64_t label = task.labels[row] - first_class;
        if (label < 0 || label >= classes) continue;
        if (column < task.d) {
            const T value = static_cast<const T*>(task.features)[row * task.d + column];
            sums[(own * classes + label) * warp + lane] += to_float(value);
        }
        if (blockIdx.x == 0 && lane == 0) {
            atomicAdd(reinterpret_cast<unsigned long long*>(task.counts + first_class + label), 1ull);
        }
    }
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < classes * warp; i += blockDim.x) {
        const std::int64_t to = std::int64_t{blockIdx.x} * warp + i % warp;
        if (to >= task.d) continue;
        double sum = 0;
        for (int w = 0; w < warps; ++w) sum += sums[w * classes * warp + i];
        task.scratch[(std::int64_t{blockIdx.y} * task.k + first_class + i / warp) * task.d + to] = sum;
    }
}

// Adds the segments in their order, so that the result is the same every time.
__global__ void means_kernel(const ClassMeans task) {
    const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
    if (i >= task.k * task.d) return;
    double sum = 0;
    for (std::int64_t s = 0; s < task.segments; ++s) sum += task.scratch[s * task.k * task.d + i];
    task.means[i] = static_cast<float>(sum / static_cast<double>(task.counts[i / task.d]));
}

}  // namespace

void min_class_distance_cuda(const MinClassDistance& task, int device, std::uintptr_t stream) {
    if (task.n <= 0) return;
    const OnDevice guard(device);
    constexpr int threads = 256;
    const std::int64_t rows = threads / warp * rows_at_once;
    const auto blocks = static_cast<unsigned>(std::min((task.n + rows - 1) / rows, guard.processors() * 8));
    const auto kernel = task.bfloat16 ? distance_kernel<std::uint16_t> : distance_kernel<float>;
    kernel<<<blocks, threads, 0, reinterpret_cast<cudaStream_t>(stream)>>>(task);
    check(cudaGetLastError(), "launching min_class_distance");
}

void class_means_cuda(const ClassMeans& task, int device, std::uintptr_t stream) {
    if (task.k <= 0) return;
    const OnDevice guard(device);
    const auto queue = reinterpret_cast<cudaStream_t>(stream);
    // As much shared memory as any device gives without being asked: 48 KiB, 192 classes for one warp.
    constexpr std::int64_t most = 192;
    // One block of columns at least: the first one counts, also where there are no columns.
    const auto columns = static_cast<unsigned>(std::max<std::int64_t>(1, (task.d + warp - 1) / warp));
    const auto kernel = task.bfloat16 ? sums_kernel<std::uint16_t> : sums_kernel<float>;
    for (std::int64_t first = 0; first < task.k; first += most) {
        const std::int64_t classes = std::min(most, task.k - first);
        const std::int64_t warps = std::min<std::int64_t>(8, most / classes);
        const auto bytes = static_cast<std::size_t>(warps * classes * warp) * sizeof(double);
        const dim3 grid(columns, static_cast<unsigned>(task.segments));
        kernel<<<grid, static_cast<unsigned>(warps * warp), bytes, queue>>>(task, first, classes);
        check(cudaGetLastError(), "launching class_means");
    }
    if (task.d <= 0) return;
    constexpr int threads = 256;
    const auto blocks = static_cast<unsigned>((task.k * task.d + threads - 1) / threads);
    means_kernel<<<blocks, threads, 0, queue>>>(task);
    check(cudaGetLastError(), "launching class_means");
}

}  // namespace bdaudit
