// parallel_for: every item once, also from several callers at once. Built twice, without an OpenMP in
// the process and with one.

#include "threads.h"

#include <atomic>
#include <new>
#include <thread>

#include "testing.h"

namespace {

bool every_item_once(std::int64_t count, std::int64_t grain, int threads) {
    std::vector<std::atomic<int>> seen(static_cast<std::size_t>(count));
    std::atomic<bool> parts_fit{true};
    bdaudit::parallel_for(count, grain, threads, [&](std::int64_t begin, std::int64_t end, int part) {
        if (part < 0 || part >= std::max(threads, 1)) parts_fit = false;
        for (std::int64_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
    });
    for (const auto& times : seen) {
        if (times != 1) return false;
    }
    return parts_fit;
}

void many_rounds(const char* what) {
    for (int round = 0; round < 300; ++round) {
        const std::int64_t count = testing::below(1000), grain = testing::below(50);
        const int threads = testing::below(9);
        testing::check(every_item_once(count, grain, threads),
                       what + testing::with({{"count", count}, {"grain", grain}, {"threads", threads}}));
    }
}

}  // namespace

int main() {
    testing::check(bdaudit::threads_are_openmp() == (EXPECT_OPENMP != 0), "the threads are not those expected");
    bool caught = false;
    try {
        bdaudit::parallel_for(100, 1, 4, [](std::int64_t, std::int64_t, int part) {
            if (part != 1) throw std::bad_alloc();
        });
    } catch (const std::bad_alloc&) {
        caught = true;
    }
    testing::check(caught, "what a part throws is thrown again");
    many_rounds("one caller");
    std::atomic<bool> good{true};
    {
        std::vector<std::jthread> callers;
        for (int caller = 0; caller < 4; ++caller) {
            callers.emplace_back([&] {
                for (int round = 0; round < 300; ++round) {
                    if (!every_item_once(100, 1, 3)) good = false;
                }
            });
        }
    }
    testing::check(good, "four callers at once");
    return testing::finish();
}
