#include "threads.h"

#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#endif

namespace bdaudit {
namespace {

// What gcc calls for `#pragma omp parallel`, and what LLVM's and Intel's libraries offer under the same name.
struct OpenMP {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;

    OpenMP() {
#if defined(__unix__) || defined(__APPLE__)
        const auto find = [](auto& function, const char* name) {
            function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
        };
        find(parallel, "GOMP_parallel");
        find(thread, "omp_get_thread_num");
        find(threads, "omp_get_num_threads");
#endif
    }

    explicit operator bool() const { return parallel && thread && threads; }
};

struct Parts {
    const OpenMP& openmp;
    int count;
    void (*job)(const void*, int);
    const void* context;
};

void every_part(void* data) {
    const auto& parts = *static_cast<const Parts*>(data);
    // OpenMP may give fewer threads than were asked for.
    const int step = parts.openmp.threads();
    for (int part = parts.openmp.thread(); part < parts.count; part += step) parts.job(parts.context, part);
}

}  // namespace

void run_parts(int parts, void (*job)(const void*, int), const void* context) {
    static const OpenMP openmp;
    if (openmp) {
        Parts all{openmp, parts, job, context};
        return openmp.parallel(every_part, &all, static_cast<unsigned>(parts), 0);
    }
    std::vector<std::jthread> helpers;
    helpers.reserve(static_cast<std::size_t>(parts - 1));
    int part = 1;
    try {
        for (; part < parts; ++part) helpers.emplace_back([=] { job(context, part); });
    } catch (const std::system_error&) {
        // The system is out of threads: the caller does what is left.
        for (; part < parts; ++part) job(context, part);
    }
    job(context, 0);
}

}  // namespace bdaudit
