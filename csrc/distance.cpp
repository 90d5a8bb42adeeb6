#include "distance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace bdaudit {
namespace {

template <int lanes, class T>
BDAUDIT_INLINE typename Vector<lanes>::Floats widen(const T* from) {
    if constexpr (sizeof(T) == sizeof(float)) {
        return load<typename Vector<lanes>::Floats>(from);
    } else {
        float values[lanes];
        for (int lane = 0; lane < lanes; ++lane) values[lane] = to_float(from[lane]);
        return load<typename Vector<lanes>::Floats>(values);
    }
}

// Centres that go with a row at once: their sums, the row and a difference fit the registers.
constexpr std::int64_t most = 10;

// The centres that are finite, in groups of `most`. Within a group a vector of each comes after the other, so that one
// pointer runs through all of them, and past the end of a row there are zeros, which add nothing.
struct Centres {
    std::vector<float> values;
    std::vector<std::int64_t> classes;
    std::int64_t count = 0, padded;  // values of a centre, in whole vectors

    Centres(const MinClassDistance& task, std::int64_t lanes) : padded((task.d + lanes - 1) / lanes * lanes) {
        for (std::int64_t k = 0; k < task.k; ++k) {
            const float* from = task.centres + k * task.d;
            if (std::all_of(from, from + task.d, [](float value) { return std::isfinite(value); })) classes.push_back(k);
        }
        count = static_cast<std::int64_t>(classes.size());
        values.resize(static_cast<std::size_t>(count * padded), 0.0f);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t group = i / most * most, many = std::min(most, count - group);
            const float* from = task.centres + classes[static_cast<std::size_t>(i)] * task.d;
            for (std::int64_t at = 0; at < task.d; ++at) {
                const std::int64_t vector = at / lanes * many + (i - group);
                values[static_cast<std::size_t>(group * padded + vector * lanes + at % lanes)] = from[at];
            }
        }
    }
};

// Squared distances from one row to `many` centres at once, so that the row is read once for all of them.
template <int lanes, int many, class T>
BDAUDIT_INLINE void squared(const T* row, const float* tail, const float* centres, std::int64_t d, float* result) {
    using Floats = typename Vector<lanes>::Floats;
    Floats sums[many];
    for (int k = 0; k < many; ++k) sums[k] = Floats{};  // = {} becomes a slow string instruction
    const auto add = [&](const Floats& x) __attribute__((always_inline)) {
        for (int k = 0; k < many; ++k) {
            const Floats difference = x - load<Floats>(centres + k * lanes);
            sums[k] += difference * difference;
        }
        centres += many * lanes;
    };
    std::int64_t at = 0;
    for (; at + 2 * lanes <= d; at += 2 * lanes) {
        // So much work stands between two loads of a row that the processor does not see far enough ahead.
        __builtin_prefetch(reinterpret_cast<const char*>(row + at) + 2048);
        add(widen<lanes>(row + at));
        add(widen<lanes>(row + at + lanes));
    }
    if (at + lanes <= d) {
        add(widen<lanes>(row + at));
        at += lanes;
    }
    if (at < d) add(load<Floats>(tail));
    for (int k = 0; k < many; ++k) {
        float lane[lanes];
        store(lane, sums[k]);
        for (int half = lanes / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
        }
        result[k] = lane[0];
    }
}

template <int lanes, int many, class T>
BDAUDIT_INLINE void squared_for(std::int64_t wanted, const T* row, const float* tail, const float* centres,
                                std::int64_t d, float* result) {
    if (wanted == many) return squared<lanes, many>(row, tail, centres, d, result);
    if constexpr (many > 1) squared_for<lanes, many - 1>(wanted, row, tail, centres, d, result);
}

template <int lanes, class T>
BDAUDIT_INLINE void distances(const MinClassDistance& task, const Centres& centres, std::int64_t begin,
                              std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
        const T* row = static_cast<const T*>(task.features) + i * task.d;
        float tail[lanes] = {};
        for (std::int64_t at = task.d / lanes * lanes; at < task.d; ++at) tail[at % lanes] = to_float(row[at]);
        const std::int64_t excluded = task.exclude ? task.exclude[i] : -1;
        float best = std::numeric_limits<float>::infinity();
        for (std::int64_t k = 0; k < centres.count; k += most) {
            const float* from = centres.values.data() + k * centres.padded;
            const std::int64_t left = std::min(most, centres.count - k);
            float found[most];
            squared_for<lanes, most>(left, row, tail, from, task.d, found);
            for (std::int64_t j = 0; j < left; ++j) {
                const std::int64_t at = k + j;
                // Written so that a NaN is kept: features with one are no distance from anything.
                if (centres.classes[static_cast<std::size_t>(at)] != excluded && !(found[j] >= best)) best = found[j];
            }
        }
        task.out[i] = std::sqrt(best);
    }
}

// The sums of rows [begin, end), a class after the other; `sums` is (k, d).
template <class T>
BDAUDIT_INLINE void sums_of(const ClassMeans& task, std::int64_t begin, std::int64_t end, double* sums) {
    for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t label = task.labels[i];
        if (label < 0 || label >= task.k) continue;
        const T* __restrict__ row = static_cast<const T*>(task.features) + i * task.d;
        double* __restrict__ sum = sums + label * task.d;
        for (std::int64_t at = 0; at < task.d; ++at) sum[at] += static_cast<double>(to_float(row[at]));
    }
}

using Distances = void (*)(const MinClassDistance&, const Centres&, std::int64_t begin, std::int64_t end);
using Sums = void (*)(const ClassMeans&, std::int64_t begin, std::int64_t end, double* sums);

struct Kernels {
    Distances distances;
    std::int64_t lanes;
    Sums sums;
};

template <class T>
void distances_portable(const MinClassDistance& task, const Centres& centres, std::int64_t begin, std::int64_t end) {
    distances<4, T>(task, centres, begin, end);
}

template <class T>
void sums_portable(const ClassMeans& task, std::int64_t begin, std::int64_t end, double* sums) {
    sums_of<T>(task, begin, end, sums);
}

#if defined(__x86_64__)
template <class T>
BDAUDIT_AVX2 void distances_avx2(const MinClassDistance& task, const Centres& centres, std::int64_t begin,
                                 std::int64_t end) {
    distances<8, T>(task, centres, begin, end);
}

template <class T>
BDAUDIT_AVX2 void sums_avx2(const ClassMeans& task, std::int64_t begin, std::int64_t end, double* sums) {
    sums_of<T>(task, begin, end, sums);
}

template <class T>
BDAUDIT_AVX512 void distances_avx512(const MinClassDistance& task, const Centres& centres, std::int64_t begin,
                                     std::int64_t end) {
    distances<16, T>(task, centres, begin, end);
}
#endif

template <class T>
Kernels choose([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    isa = std::min(isa, best_isa());
    if (isa == Isa::avx512) return {distances_avx512<T>, 16, sums_avx2<T>};
    if (isa == Isa::avx2) return {distances_avx2<T>, 8, sums_avx2<T>};
#endif
    return {distances_portable<T>, 4, sums_portable<T>};
}

}  // namespace

void min_class_distance_cpu(const MinClassDistance& task, int threads, Isa isa) {
    // Waking a thread costs about as much as this many squared differences.
    constexpr std::int64_t work_per_thread = 65536;
    if (task.n <= 0) return;
    const Kernels kernels = task.bfloat16 ? choose<std::uint16_t>(isa) : choose<float>(isa);
    const Centres centres(task, kernels.lanes);
    const std::int64_t row = std::max<std::int64_t>(1, task.d * std::max<std::int64_t>(1, task.k));
    parallel_for(task.n, std::max<std::int64_t>(1, work_per_thread / row), threads,
                 [&](std::int64_t begin, std::int64_t end, int) { kernels.distances(task, centres, begin, end); });
}

void class_means_cpu(const ClassMeans& task, int threads, Isa isa) {
    constexpr std::int64_t work_per_thread = 65536;
    for (std::int64_t i = 0; i < task.n; ++i) {
        const std::int64_t label = task.labels[i];
        if (label >= 0 && label < task.k) ++task.counts[label];
    }
    const Kernels kernels = task.bfloat16 ? choose<std::uint16_t>(isa) : choose<float>(isa);
    const std::int64_t size = task.k * task.d;
    std::vector<double> sums(static_cast<std::size_t>(task.segments * size), 0.0);
    const auto bound = [&](std::int64_t at) { return task.n / task.segments * at + task.n % task.segments * at / task.segments; };
    const std::int64_t grain = std::max<std::int64_t>(1, work_per_thread * task.segments / std::max<std::int64_t>(1, task.n * task.d));
    parallel_for(task.segments, grain, threads, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t at = first; at < last; ++at) kernels.sums(task, bound(at), bound(at + 1), sums.data() + at * size);
    });
    for (std::int64_t i = 0; i < size; ++i) {
        double sum = 0;
        for (std::int64_t at = 0; at < task.segments; ++at) sum += sums[static_cast<std::size_t>(at * size + i)];
        // 0 / 0 is NaN, as it should be.
        task.means[i] = static_cast<float>(sum / static_cast<double>(task.counts[i / task.d]));
    }
}

}  // namespace bdaudit
