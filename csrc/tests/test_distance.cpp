// min_class_distance_cpu and class_means_cpu against their definitions in 64 bits.

#include "distance.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "testing.h"

namespace {

using bdaudit::Isa;
using testing::below;

constexpr double infinity = std::numeric_limits<double>::infinity();

bool near(float got, double want) {
    if (std::isnan(want)) return std::isnan(got);
    if (std::isinf(want)) return static_cast<double>(got) == want;
    return std::abs(static_cast<double>(got) - want) <= 1e-5 * std::abs(want) + 1e-6;
}

void test(std::int64_t n, std::int64_t d, std::int64_t k, bool half, bool excluding) {
    auto features = testing::normal(n * d, 1);
    std::vector<std::uint16_t> halves;
    for (float& x : features) {
        halves.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16));
        if (half) x = std::bit_cast<float>(std::uint32_t{halves.back()} << 16);
    }
    const void* data = half ? static_cast<const void*>(halves.data()) : features.data();
    auto centres = testing::normal(k * d, 1);
    if (d > 0 && below(2)) centres[static_cast<std::size_t>(below(static_cast<int>(k)) * d)] = NAN;
    const auto labels = testing::random<std::int64_t>(n, -1, static_cast<int>(k));
    const auto at = [&](const std::vector<float>& from, std::int64_t i) {
        return static_cast<double>(from[static_cast<std::size_t>(i)]);
    };

    std::vector<double> distances, sums(static_cast<std::size_t>(k * d));
    std::vector<std::int64_t> counted(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < n; ++i) {
        const std::int64_t label = labels[static_cast<std::size_t>(i)];
        double best = infinity;
        for (std::int64_t c = 0; c < k; ++c) {
            double sum = 0;
            for (std::int64_t j = 0; j < d; ++j) sum += std::pow(at(features, i * d + j) - at(centres, c * d + j), 2);
            if (!(excluding && c == label) && !std::isnan(sum)) best = std::min(best, sum);
        }
        distances.push_back(std::sqrt(best));
        if (label < 0 || label >= k) continue;
        ++counted[static_cast<std::size_t>(label)];
        for (std::int64_t j = 0; j < d; ++j) sums[static_cast<std::size_t>(label * d + j)] += at(features, i * d + j);
    }

    for (const Isa isa : testing::every_isa) {
        std::vector<float> first;
        for (const int threads : testing::thread_counts) {
            const auto name = testing::with({{"n", n}, {"d", d}, {"k", k}, {"half", half}, {"excluding", excluding},
                                             {"isa", static_cast<int>(isa)}, {"threads", threads}});
            std::vector<float> out(static_cast<std::size_t>(n)), means(static_cast<std::size_t>(k * d));
            std::vector<std::int64_t> counts(static_cast<std::size_t>(k));
            bdaudit::min_class_distance_cpu(
                {data, centres.data(), excluding ? labels.data() : nullptr, out.data(), n, d, k, half}, threads, isa);
            for (std::int64_t i = 0; i < n; ++i) {
                const auto row = static_cast<std::size_t>(i);
                if (!near(out[row], distances[row])) testing::check(false, "distance" + name);
            }
            bdaudit::class_means_cpu(
                {data, labels.data(), means.data(), counts.data(), nullptr, n, d, k, 1 + n / 64, half}, threads, isa);
            testing::check(counts == counted, "counts" + name);
            for (std::int64_t i = 0; i < k * d; ++i) {
                const auto entry = static_cast<std::size_t>(i);
                const double want = sums[entry] / static_cast<double>(counted[static_cast<std::size_t>(i / d)]);
                if (!near(means[entry], want)) testing::check(false, "mean" + name);
            }
            if (first.empty()) first = means;
            const auto same = [](float a, float b) { return std::bit_cast<int>(a) == std::bit_cast<int>(b); };
            testing::check(std::equal(means.begin(), means.end(), first.begin(), same), "threads changed means" + name);
        }
    }
}

}  // namespace

int main() {
    for (const bool half : {false, true}) {
        for (const bool excluding : {false, true}) {
            test(0, 5, 3, half, excluding);
            test(4, 0, 3, half, excluding);
            for (int round = 0; round < 60; ++round) test(1 + below(50), 1 + below(70), 1 + below(25), half, excluding);
            test(3000, 67, 9, half, excluding);  // large enough for several threads
        }
    }
    return testing::finish();
}
