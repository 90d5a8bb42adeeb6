#include "losses.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>

#include "simd.h"
#include "threads.h"

namespace bdaudit {
namespace {

// exp(x) for x in [-87, 0], to about 1 ulp: 2^n times a polynomial in what is left, |r| <= log(2) / 2. NaN stays NaN.
template <int lanes, class Floats = typename Vector<lanes>::Floats>
BDAUDIT_INLINE Floats exp_of(const Floats& x) {
    using Words = typename Vector<lanes>::Words;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const Floats shifted = x * 1.44269504f + 12582912.0f;
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats y = r * 1.98412698e-4f + 1.38888889e-3f;
    y = y * r + 8.33333333e-3f;
    y = y * r + 4.16666667e-2f;
    y = y * r + 1.66666667e-1f;
    y = y * r + 0.5f;
    y = y * r * r + r + 1.0f;
    return y * bits<Floats>((bits<Words>(shifted) << 23) + 0x3f800000u);
}

// log(x) for normal x >= 1, to about 1 ulp: the exponent, and 2 atanh((m - 1) / (m + 1)) of the mantissa m, which is
// taken from [sqrt(1/2), sqrt(2)) so that the series is short.
template <int lanes, class Floats = typename Vector<lanes>::Floats>
BDAUDIT_INLINE Floats log_of(const Floats& x) {
    using Words = typename Vector<lanes>::Words;
    const Words raw = bits<Words>(x) - 0x3f3504f3u;
    const Floats exponent = __builtin_convertvector(bits<typename Vector<lanes>::Ints>(raw >> 23), Floats);
    const Floats m = bits<Floats>((raw & 0x007fffffu) + 0x3f3504f3u);
    const Floats s = (m - 1.0f) / (m + 1.0f);
    const Floats z = s * s;
    const Floats series = ((z * 0.222222222f + 0.285714286f) * z + 0.4f) * z + 0.666666667f;
    return exponent * 0.693359375f + ((s * 2.0f + s * z * series) - exponent * 2.12194440e-4f);
}

constexpr std::int64_t chunk = 128;  // classes at a time: with 16 rows 8 KiB, which stays in the first-level cache

// tile[c][lane] = the logits of classes [begin, end) of `lanes` rows; what a lane without a row holds does not matter.
template <int lanes, class T>
BDAUDIT_INLINE void transpose(const T* logits, std::int64_t c, std::int64_t rows, std::int64_t begin, std::int64_t end,
                              float* tile) {
    for (std::int64_t row = 0; row < rows; ++row) {
        const T* from = logits + row * c;
        for (std::int64_t at = begin; at < end; ++at) tile[(at - begin) * lanes + row] = to_float(from[at]);
    }
}

// A row in each lane. The largest logit first, then the sums: the second pass finds the rows in the cache.
template <int lanes, class T>
BDAUDIT_INLINE void rows_of(const SampleLosses& task, std::int64_t first, std::int64_t rows,
                            float* tile, std::int64_t& nans) {
    using Floats = typename Vector<lanes>::Floats;
    using Ints = typename Vector<lanes>::Ints;
    const T* logits = static_cast<const T*>(task.logits) + first * task.c;

    Floats largest = Floats{} - std::numeric_limits<float>::infinity();
    Ints prediction{};
    for (std::int64_t begin = 0; begin < task.c; begin += chunk) {
        const std::int64_t end = std::min(task.c, begin + chunk);
        transpose<lanes>(logits, task.c, rows, begin, end, tile);
        for (std::int64_t at = begin; at < end; ++at) {
            const Floats x = load<Floats>(tile + (at - begin) * lanes);
            const Ints above = x > largest;
            prediction = above ? Ints{} + static_cast<std::int32_t>(at) : prediction;
            largest = above ? x : largest;
        }
    }

    // Sums of e and of e (x - largest), where e = exp(x - largest). The prediction's own e is 1; left out of the sum, it
    // does not swamp what the others say of a sample that fits well: such losses differ far below fp32's 1e-7.
    Floats others{}, weighted{};
    for (std::int64_t begin = 0; begin < task.c; begin += chunk) {
        const std::int64_t end = std::min(task.c, begin + chunk);
        if (task.c > chunk) transpose<lanes>(logits, task.c, rows, begin, end, tile);
        for (std::int64_t at = begin; at < end; ++at) {
            Floats below = load<Floats>(tile + (at - begin) * lanes) - largest;
            below = below < -87.0f ? Floats{} - 87.0f : below;  // NaN is not less, and stays
            const Floats e = exp_of<lanes>(below);
            others += prediction == static_cast<std::int32_t>(at) ? Floats{} + below * 0.0f : e;
            weighted += e * below;
        }
    }

    float own[lanes] = {};
    std::int32_t label[lanes] = {};
    for (std::int64_t row = 0; row < rows; ++row) {
        const std::int64_t given = task.labels[first + row];
        const bool known = given >= 0 && given < task.c;
        label[row] = known ? static_cast<std::int32_t>(given) : -1;
        own[row] = known ? to_float(logits[row * task.c + given]) : std::numeric_limits<float>::quiet_NaN();
    }
    const Floats nothing = Floats{} + std::numeric_limits<float>::quiet_NaN();
    const Floats total = others + 1.0f;
    const Ints valid = others == others;
    // log(1 + others), with what the sum lost in rounding put back.
    const Floats log_total = log_of<lanes>(total) + (others - (total - 1.0f)) / total;
    Floats ce = (largest - load<Floats>(own)) + log_total;
    ce = valid ? ce : nothing;
    // 1 - p_y, without cancelling where the label is the prediction.
    const Floats capped = ce > 87.0f ? Floats{} - 87.0f : -ce;
    const Floats missed = prediction == load<Ints>(label) ? others / total : 1.0f - exp_of<lanes>(capped);
    const Floats sce = ce * sce_ce_weight + missed * sce_log_floor;
    const Floats entropy = valid ? log_total - weighted / total : nothing;
    const Floats confidence = 1.0f / total;

    const Floats results[4] = {ce, sce, entropy, confidence};
    const auto size = static_cast<std::size_t>(rows) * sizeof(float);
    for (int i = 0; i < 4; ++i) std::memcpy(task.values + i * task.n + first, &results[i], size);
    for (std::int64_t row = 0; row < rows; ++row) {
        task.prediction[first + row] = valid[row] ? prediction[row] : -1;
        nans += !valid[row];
    }
}

template <int lanes, class T>
BDAUDIT_INLINE std::int64_t range_of(const SampleLosses& task, std::int64_t begin,
                                     std::int64_t end) {
    alignas(64) float tile[chunk * lanes] = {};
    std::int64_t nans = 0;
    for (std::int64_t row = begin; row < end; row += lanes) {
        rows_of<lanes, T>(task, row, std::min<std::int64_t>(lanes, end - row), tile, nans);
    }
    return nans;
}

using Range = std::int64_t (*)(const SampleLosses&, std::int64_t begin, std::int64_t end);

template <class T>
std::int64_t range_portable(const SampleLosses& task, std::int64_t begin, std::int64_t end) {
    return range_of<4, T>(task, begin, end);
}

#if defined(__x86_64__)
template <class T>
BDAUDIT_AVX2 std::int64_t range_avx2(const SampleLosses& task, std::int64_t begin, std::int64_t end) {
    return range_of<8, T>(task, begin, end);
}

template <class T>
BDAUDIT_AVX512 std::int64_t range_avx512(const SampleLosses& task, std::int64_t begin, std::int64_t end) {
    return range_of<16, T>(task, begin, end);
}
#endif

template <class T>
Range choose([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    isa = std::min(isa, best_isa());
    if (isa == Isa::avx512) return range_avx512<T>;
    if (isa == Isa::avx2) return range_avx2<T>;
#endif
    return range_portable<T>;
}

}  // namespace

void sample_losses_cpu(const SampleLosses& task, int threads, Isa isa) {
    // Waking a thread costs about as much as this many logits.
    constexpr std::int64_t logits_per_thread = 16384;
    if (task.n <= 0) return;
    const Range range = task.bfloat16 ? choose<std::uint16_t>(isa) : choose<float>(isa);
    const std::int64_t grain = std::max<std::int64_t>(16, logits_per_thread / std::max<std::int64_t>(1, task.c));
    parallel_for(task.n, grain, threads, [&](std::int64_t begin, std::int64_t end, int) {
        const std::int64_t nans = range(task, begin, end);
        if (nans) std::atomic_ref(*task.nans).fetch_add(nans, std::memory_order_relaxed);
    });
}

}  // namespace bdaudit
