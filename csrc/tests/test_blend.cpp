// blend_cpu against its formula written out pixel by pixel, for every instruction set that this machine has. Buffers
// are allocated to the byte, so that a sanitizer build sees any step outside them.

#include "blend.h"

#include <algorithm>

#include "testing.h"

namespace {

using bdaudit::Blend;
using bdaudit::Isa;
using testing::below;
using testing::random;

std::vector<std::uint8_t> expected(const Blend& task) {
    std::vector<std::uint8_t> out;
    for (std::int64_t n = 0; n < task.n; ++n) {
        const std::int64_t slot = task.slots ? task.slots[n] : n;
        for (std::int64_t at = 0; at < task.c * task.h * task.w; ++at) {
            const std::int64_t x = task.images[n * task.c * task.h * task.w + at];
            const std::int64_t row = at / task.w % task.h * task.bh / task.h;
            const std::int64_t column = at % task.w * task.bw / task.w;
            bool blended = slot >= 0 && !(task.blocks && slot >= task.masks);
            if (blended && task.blocks) blended = task.blocks[(slot * task.bh + row) * task.bw + column] != 0;
            const std::int64_t w = task.weight[at] < 0 ? 0 : task.weight[at];
            out.push_back(static_cast<std::uint8_t>(blended ? x + (((task.pattern[at] - x) * w + 16384) >> 15) : x));
        }
    }
    return out;
}

void check(bool holds, const char* what, const Blend& task, Isa isa, int threads) {
    if (holds) return;
    testing::check(false, what + testing::with({{"n", task.n}, {"c", task.c}, {"h", task.h}, {"w", task.w},
                                                {"slots", task.slots != nullptr}, {"blocks", task.blocks != nullptr},
                                                {"bh", task.bh}, {"bw", task.bw}, {"isa", static_cast<int>(isa)},
                                                {"threads", threads}}));
}

void test(std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, bool with_slots, bool with_blocks, int low) {
    const std::int64_t size = c * h * w;
    // An offset from the allocation's alignment, as a slice of a tensor has.
    const std::int64_t shift = below(40);
    const auto images = random<std::uint8_t>(n * size + shift, 0, 255);
    const auto pattern = random<std::uint8_t>(size, 0, 255);
    const auto weight = random<std::int16_t>(size, low, 32767);
    const std::int64_t bh = 1 + below(static_cast<int>(h) + 2), bw = 1 + below(static_cast<int>(w) + 2);
    // Two masks too few when there are slots: indices beyond them must leave the image alone.
    const std::int64_t masks = with_slots ? std::max<std::int64_t>(n - 2, 0) : n;
    const auto blocks = random<std::uint8_t>(masks * bh * bw, 0, 1);
    const auto slots = random<std::int64_t>(n, -2, static_cast<int>(n) - 1);
    Blend task{images.data() + shift, pattern.data(), weight.data(), with_slots ? slots.data() : nullptr,
               with_blocks ? blocks.data() : nullptr, nullptr, n, c, h, w, masks, bh, bw};
    if (with_blocks && masks == 0) return;  // an empty vector's data() may be null, which means no blocks
    const auto want = expected(task);
    for (const Isa isa : testing::every_isa) {
        for (const int threads : testing::thread_counts) {
            std::vector<std::uint8_t> out(static_cast<std::size_t>(n * size + shift), 7);
            task.out = out.data() + shift;
            bdaudit::blend_cpu(task, threads, isa);
            check(std::vector<std::uint8_t>(out.begin() + shift, out.end()) == want, "blend", task, isa, threads);
            const bool kept = std::count(out.begin(), out.begin() + shift, 7) == shift;
            check(kept, "guard", task, isa, threads);
        }
    }
}

// Every pixel, pattern and end weight: 0 keeps the image and 32767 gives the pattern, exactly.
void test_exact() {
    for (const int weight : {0, 32767}) {
        std::vector<std::uint8_t> images, pattern;
        for (int x = 0; x < 256; ++x) {
            for (int p = 0; p < 256; ++p) {
                images.push_back(static_cast<std::uint8_t>(x));
                pattern.push_back(static_cast<std::uint8_t>(p));
            }
        }
        const std::vector<std::int16_t> weights(images.size(), static_cast<std::int16_t>(weight));
        for (const Isa isa : testing::every_isa) {
            std::vector<std::uint8_t> out(images.size());
            const Blend task{images.data(), pattern.data(), weights.data(), nullptr, nullptr, out.data(),
                             1, 1, 256, 256, 0, 0, 0};
            bdaudit::blend_cpu(task, 1, isa);
            check(out == (weight ? pattern : images), "exact", task, isa, 1);
        }
    }
}

}  // namespace

int main() {
    test_exact();
    for (const bool slots : {false, true}) {
        for (const bool blocks : {false, true}) {
            test(0, 3, 4, 4, slots, blocks, 0);
            test(1, 1, 1, 1, slots, blocks, 0);
            test(3, 3, 0, 5, slots, false, 0);
            for (int round = 0; round < 60; ++round) {
                test(1 + below(9), 1 + below(3), 1 + below(40), 1 + below(40), slots, blocks, round % 4 ? 0 : -32768);
            }
            test(120, 3, 57, 53, slots, blocks, 0);   // more than one tile of the pattern, several threads
            test(1000, 3, 55, 53, slots, blocks, 0);  // large enough to write around the cache
        }
    }
    return testing::finish();
}
