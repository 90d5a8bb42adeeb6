#include "threads.h"

#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
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
        // A forked child has OpenMP's memory but none of its threads, and gcc's would wait for them for ever.
        pthread_atfork(nullptr, nullptr, [] { forked() = true; });
#endif
    }

    explicit operator bool() const { return parallel && thread && threads && !forked(); }

    static std::atomic<bool>& forked() {
        static std::atomic<bool> happened{false};
        return happened;
    }
};

// The parts of one job. None may throw into OpenMP, or out of a thread: the first exception waits for the end.
class Parts {
public:
    Parts(int count, void (*job)(const void*, int), const void* context) : count_(count), job_(job), context_(context) {}

    // Do part `first` and every `step`-th after it.
    void run(int first, int step) {
        try {
            for (int part = first; part < count_; part += step) job_(context_, part);
        } catch (...) {
            if (!failed_.test_and_set()) error_ = std::current_exception();
        }
    }

    void finish() const {
        if (error_) std::rethrow_exception(error_);
    }

private:
    const int count_;
    void (*const job_)(const void*, int);
    const void* const context_;
    std::atomic_flag failed_;
    std::exception_ptr error_;
};

const OpenMP& openmp() {
    static const OpenMP found;
    return found;
}

void run_on_openmp(void* parts) {
    // OpenMP may give fewer threads than were asked for.
    static_cast<Parts*>(parts)->run(openmp().thread(), openmp().threads());
}

}  // namespace

bool threads_are_openmp() { return static_cast<bool>(openmp()); }

void run_parts(int count, void (*job)(const void*, int), const void* context) {
    Parts parts(count, job, context);
    if (openmp()) {
        openmp().parallel(run_on_openmp, &parts, static_cast<unsigned>(count), 0);
    } else {
        std::vector<std::jthread> helpers;
        helpers.reserve(static_cast<std::size_t>(count - 1));
        int part = 1;
        try {
            for (; part < count; ++part) helpers.emplace_back([&parts, part, count] { parts.run(part, count); });
        } catch (const std::system_error&) {
            // The system is out of threads: the caller does what is left.
            for (; part < count; ++part) parts.run(part, count);
        }
        parts.run(0, count);
    }
    parts.finish();
}

}  // namespace bdaudit
