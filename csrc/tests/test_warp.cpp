// warp_cpu against its formula written out pixel by pixel, for every instruction set that this machine has.

#include "warp.h"

#include <algorithm>

#include "testing.h"

namespace {

using bdaudit::Isa;
using bdaudit::Warp;
using testing::below;
using testing::random;

std::vector<std::uint8_t> expected(const Warp& task) {
    std::vector<std::uint8_t> out(task.images, task.images + task.n * task.c * task.h * task.w);
    for (std::int64_t n = 0; n < task.n; ++n) {
        if (task.rows && !task.rows[n]) continue;
        for (std::int64_t c = 0; c < task.c; ++c) {
            const std::int64_t first = (n * task.c + c) * task.h * task.w;
            for (std::int64_t i = 0; i < task.h * task.w; ++i) {
                std::int32_t x = task.positions[2 * i], y = task.positions[2 * i + 1];
                if (task.seeds) {
                    const auto draw = bdaudit::random_of(bdaudit::key_of(task.seeds[n]), static_cast<std::uint32_t>(i));
                    const auto move = [](std::uint32_t bits, float most) {
                        const float even = static_cast<float>(2 * static_cast<int>(bits) - 65535);
                        return static_cast<std::int32_t>(std::nearbyint(even * (most / 65536)));
                    };
                    x = std::clamp<std::int32_t>(x + move(draw & 0xffff, task.jitter_x), 0,
                                                 static_cast<std::int32_t>(task.w - 1) << bdaudit::position_bits);
                    y = std::clamp<std::int32_t>(y + move(draw >> 16, task.jitter_y), 0,
                                                 static_cast<std::int32_t>(task.h - 1) << bdaudit::position_bits);
                }
                const auto at = [&](std::int64_t line, std::int64_t column) -> std::int32_t {
                    const bool inside = line >= 0 && line < task.h && column >= 0 && column < task.w;
                    return inside ? task.images[first + line * task.w + column] : 0;
                };
                const std::int64_t x0 = x >> bdaudit::position_bits, y0 = y >> bdaudit::position_bits;
                const auto w = bdaudit::weights_of(x, y);
                const std::int32_t mixed = bdaudit::mix(w, at(y0, x0), at(y0, x0 + 1), at(y0 + 1, x0), at(y0 + 1, x0 + 1));
                out[static_cast<std::size_t>(first + i)] = static_cast<std::uint8_t>(mixed);
            }
        }
    }
    return out;
}

void test(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, bool with_rows, bool with_seeds) {
    const std::int64_t size = c * h * w, shift = below(40);
    const auto images = random<std::uint8_t>(n * size + shift, 0, 255);
    std::vector<std::int32_t> positions;
    for (std::int64_t i = 0; i < h * w; ++i) {
        for (const std::int64_t side : {w, h}) {
            positions.push_back(below(static_cast<int>(side + 1) * bdaudit::position_one + 1) - bdaudit::position_one);
        }
    }
    const auto rows = random<std::uint8_t>(n, 0, 1);
    const auto seeds = random<std::int64_t>(n, -1000, 1000);
    const float most = static_cast<float>(below(5 * bdaudit::position_one));
    Warp task{images.data() + shift, positions.data(), with_seeds ? seeds.data() : nullptr,
              with_rows ? rows.data() : nullptr, nullptr, n, c, h, w, most, most / 3};
    const auto want = expected(task);
    for (const Isa isa : testing::every_isa) {
        for (const int threads : testing::thread_counts) {
            std::vector<std::uint8_t> out(static_cast<std::size_t>(n * size + shift), 7);
            task.out = out.data() + shift;
            bdaudit::warp_cpu(task, threads, isa);
            const auto name = testing::with({{"n", n}, {"c", c}, {"h", h}, {"w", w}, {"rows", with_rows},
                                             {"seeds", with_seeds}, {"isa", static_cast<int>(isa)}, {"threads", threads}});
            testing::check(std::vector<std::uint8_t>(out.begin() + shift, out.end()) == want, "warp" + name);
            testing::check(std::count(out.begin(), out.begin() + shift, 7) == shift, "guard" + name);
        }
    }
}

// Weights are never negative and add up to one, wherever the position.
void test_weights() {
    for (std::int32_t x = 0; x < bdaudit::position_one; x += 7) {
        for (std::int32_t y = 0; y < bdaudit::position_one; y += 11) {
            const auto w = bdaudit::weights_of(x - bdaudit::position_one, y);
            const bool positive = w.w00 >= 0 && w.w01 >= 0 && w.w10 >= 0 && w.w11 >= 0;
            if (positive && w.w00 + w.w01 + w.w10 + w.w11 == bdaudit::position_one) continue;
            testing::check(false, "weights" + testing::with({{"x", x}, {"y", y}}));
        }
    }
}

// Black and white next to each other, at every weight: where a sum of 16 bits would overflow if one could.
void test_extremes() {
    constexpr std::int64_t h = 2, w = 2, n = 32;
    std::vector<std::uint8_t> images;
    for (std::int64_t i = 0; i < n; ++i) {
        for (int k = 0; k < 4; ++k) images.push_back(i >> k & 1 ? 255 : 0);
    }
    for (std::int32_t x = 0; x < bdaudit::position_one; x += 61) {
        for (std::int32_t y = 0; y < bdaudit::position_one; y += 67) {
            const std::vector<std::int32_t> positions{x, y, y, x, x, x, y, y};
            Warp task{images.data(), positions.data(), nullptr, nullptr, nullptr, n, 1, h, w, 0, 0};
            const auto want = expected(task);
            for (const Isa isa : testing::every_isa) {
                std::vector<std::uint8_t> out(images.size());
                task.out = out.data();
                bdaudit::warp_cpu(task, 1, isa);
                if (out != want) testing::check(false, "extremes" + testing::with({{"x", x}, {"y", y}}));
            }
        }
    }
}

}  // namespace

int main() {
    test_weights();
    test_extremes();
    for (const bool rows : {false, true}) {
        for (const bool seeds : {false, true}) {
            test(0, 3, 4, 4, rows, seeds);
            test(1, 1, 1, 1, rows, seeds);
            test(3, 3, 0, 5, rows, seeds);
            for (int round = 0; round < 40; ++round) {
                test(1 + below(70), 1 + below(3), 1 + below(40), 1 + below(40), rows, seeds);
            }
            test(64, 3, 32, 32, rows, seeds);  // whole blocks and whole lines
            test(900, 3, 64, 64, rows, seeds);  // large enough to write around the cache
        }
    }
    return testing::finish();
}
