// sample_losses_cpu against its definition in 64 bits, for every instruction set that this machine has.

#include "losses.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "testing.h"

namespace {

using bdaudit::Isa;
using testing::below;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

bool near(float got, double want) {
    if (std::isnan(want)) return std::isnan(got);
    if (std::isinf(want)) return static_cast<double>(got) == want;
    return std::abs(static_cast<double>(got) - want) <= 2e-5 * std::abs(want) + 1e-30;
}

void compare(const std::vector<float>& logits, const std::vector<std::int64_t>& labels, std::int64_t c, bool half) {
    const auto n = static_cast<std::int64_t>(labels.size());
    std::vector<std::uint16_t> halves;
    for (const float x : logits) halves.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 16));
    const auto value = [&](std::int64_t at) {
        const auto i = static_cast<std::size_t>(at);
        return static_cast<double>(half ? std::bit_cast<float>(std::uint32_t{halves[i]} << 16) : logits[i]);
    };
    for (const Isa isa : testing::every_isa) {
        for (const int threads : testing::thread_counts) {
            std::vector<float> values(static_cast<std::size_t>(4 * n));
            std::vector<std::int64_t> prediction(static_cast<std::size_t>(n)), nans(1);
            const void* data = half ? static_cast<const void*>(halves.data()) : logits.data();
            bdaudit::sample_losses_cpu({data, labels.data(), values.data(), prediction.data(), nans.data(), n, c, half},
                                       threads, isa);
            std::int64_t invalid = 0;
            for (std::int64_t i = 0; i < n; ++i) {
                double largest = -infinity, others = 0, weighted = 0;
                std::int64_t best = 0;
                for (std::int64_t k = 0; k < c; ++k) {
                    if (value(i * c + k) > largest) largest = value(i * c + k), best = k;
                }
                for (std::int64_t k = 0; k < c; ++k) {
                    const double below = value(i * c + k) - largest;
                    if (k != best) others += std::exp(below);
                    if (std::exp(below) > 0) weighted += std::exp(below) * below;
                    if (std::isnan(below)) others = not_a_number;
                }
                const bool valid = !std::isnan(others);
                invalid += !valid;
                const std::int64_t label = labels[static_cast<std::size_t>(i)];
                const bool known = label >= 0 && label < c;
                const double ce = valid && known ? largest - value(i * c + label) + std::log1p(others) : not_a_number;
                const double missed = label == best ? others / (1 + others) : -std::expm1(-ce);
                const double want[4] = {ce, 0.1 * ce + missed * 9.2103403719761836,
                                        std::log1p(others) - weighted / (1 + others), 1 / (1 + others)};
                const auto name = testing::with({{"n", n}, {"c", c}, {"row", i}, {"half", half},
                                                 {"isa", static_cast<int>(isa)}, {"threads", threads}});
                for (int k = 0; k < 4; ++k) {
                    const bool holds = near(values[static_cast<std::size_t>(k * n + i)], want[k]);
                    if (!holds) testing::check(false, "value " + std::to_string(k) + name);
                }
                const bool same = prediction[static_cast<std::size_t>(i)] == (valid ? best : -1);
                if (!same) testing::check(false, "prediction" + name);
            }
            testing::check(nans[0] == invalid, "count of rows without probabilities");
        }
    }
}

}  // namespace

int main() {
    for (const bool half : {false, true}) {
        for (const std::int64_t c : {1, 2, 3, 10, 43, 127, 128, 129, 1000, 10000}) {
            const std::int64_t n = c > 500 ? 5 : 1 + below(70);
            for (const float scale : {0.0f, 1.0f, 30.0f, 3000.0f}) {
                auto logits = testing::normal(n * c, scale);
                for (float& x : logits) x = std::clamp(x, -1e4f, 1e4f);
                // Some labels outside, which must never be read from.
                const auto labels = testing::random<std::int64_t>(n, -1, static_cast<int>(c));
                compare(logits, labels, c, half);
            }
        }
        compare({1, 2, 0, not_a_number, 0, 0, 0, 0, not_a_number, infinity, 0, 0, -infinity, -infinity, -infinity, -infinity, 1, 2},
                {1, 0, 0, 0, 0, 0}, 3, half);
        compare({}, {}, 3, half);
        compare(testing::normal(20000 * 10, 5), testing::random<std::int64_t>(20000, 0, 9), 10, half);
    }
    return testing::finish();
}
