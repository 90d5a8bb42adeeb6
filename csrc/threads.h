// A parallel loop without a runtime library of its own: nothing to ship in the wheel, nothing to clash with torch's
// OpenMP, and nothing left running that a fork (a DataLoader worker) would lose.
#pragma once

#include <algorithm>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace bdaudit {

// Run work(begin, end, part) over [0, count), split over at most `threads` threads, the caller's being one of them;
// `part`, below `threads`, is no other thread's at the time. A thread takes at least `grain` items, so small work never
// pays for starting one. `work` must not throw.
template <class Work>
void parallel_for(std::int64_t count, std::int64_t grain, int threads, const Work& work) {
    const std::int64_t most = std::max<std::int64_t>(1, count / std::max<std::int64_t>(1, grain));
    const int parts = static_cast<int>(std::clamp<std::int64_t>(threads, 1, most));
    const auto bound = [&](int part) { return count / parts * part + std::min<std::int64_t>(part, count % parts); };

    std::vector<std::jthread> helpers;
    helpers.reserve(static_cast<std::size_t>(parts - 1));
    int part = 1;
    try {
        for (; part < parts; ++part) helpers.emplace_back([&, part] { work(bound(part), bound(part + 1), part); });
    } catch (const std::system_error&) {
        // The system is out of threads: the caller does what is left.
        work(bound(part), count, part);
    }
    work(0, bound(1), 0);
}

}  // namespace bdaudit
