// The kernels as Python sees them: addresses and sizes, no tensors. bdaudit/ops checks everything before it calls.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "blend.h"
#include "cpu.h"
#include "distance.h"
#include "losses.h"
#include "warp.h"

// Raise it, here and in bdaudit/ops/extension.py, with every change to a signature or to its meaning: a stale build is
// then refused.
#define BDAUDIT_ABI 2

namespace py = pybind11;

namespace {

// Python passes an address as an integer; sizes and numbers are what they are.
template <class Field>
using Given = std::conditional_t<std::is_pointer_v<Field>, std::uintptr_t, Field>;

template <class Field>
Field field(Given<Field> given) {
    if constexpr (std::is_pointer_v<Field>) {
        return reinterpret_cast<Field>(given);  // NOLINT: the whole point of this file
    } else {
        return given;
    }
}

// -1 asks for the best; any other one above what this processor has is lowered to it.
bdaudit::Isa isa_of(int isa) {
    const int best = static_cast<int>(bdaudit::best_isa());
    return static_cast<bdaudit::Isa>(isa < 0 ? best : std::min(isa, best));
}

#ifdef BDAUDIT_WITH_CUDA
#define BDAUDIT_CUDA_KERNEL(kernel) bdaudit::kernel
#else
template <class Task>
void not_built(const Task&, int, std::uintptr_t) {
    throw std::runtime_error("bdaudit was built without CUDA");
}
#define BDAUDIT_CUDA_KERNEL(kernel) not_built
#endif

// Defines NAME_cpu(fields..., threads, isa=-1) and NAME_cuda(fields..., device, stream), the fields being Task's in
// their order.
template <class Task, class... Fields>
struct Operator {
    static void define(py::module_& m, const std::string& name, void (*cpu)(const Task&, int, bdaudit::Isa),
                       void (*cuda)(const Task&, int, std::uintptr_t)) {
        const auto release = py::call_guard<py::gil_scoped_release>();
        m.def((name + "_cpu").c_str(), [cpu](Given<Fields>... given, int threads, int isa) {
            cpu(Task{field<Fields>(given)...}, threads, isa_of(isa));
        }, release);
        m.def((name + "_cpu").c_str(), [cpu](Given<Fields>... given, int threads) {
            cpu(Task{field<Fields>(given)...}, threads, bdaudit::best_isa());
        }, release);
        m.def((name + "_cuda").c_str(), [cuda](Given<Fields>... given, int device, std::uintptr_t stream) {
            cuda(Task{field<Fields>(given)...}, device, stream);
        }, release);
    }
};

using Byte = std::uint8_t;
using Size = std::int64_t;

}  // namespace

PYBIND11_MODULE(_csrc, m, py::mod_gil_not_used()) {
    m.doc() = "The compiled kernels of bdaudit.ops; call those instead.";
    m.attr("abi") = BDAUDIT_ABI;
#ifdef BDAUDIT_WITH_CUDA
    m.attr("cuda_built") = true;
#else
    m.attr("cuda_built") = false;
#endif
    m.attr("cuda_architectures") = BDAUDIT_CUDA_ARCHITECTURES;
    m.attr("isas") = py::make_tuple("portable", "avx2", "avx512");
    m.def("best_isa", [] { return static_cast<int>(bdaudit::best_isa()); }, "The index in isas of what kernels use.");
    m.def("cpu_features", [] {
        py::dict features;
        for (const auto& [name, usable] : bdaudit::cpu_features()) features[py::str(name)] = usable;
        return features;
    }, "Instruction sets with whether they can be used here; empty off x86.");

    Operator<bdaudit::Blend, const Byte*, const Byte*, const std::int16_t*, const Size*, const Byte*, Byte*, Size, Size,
             Size, Size, Size, Size, Size>::define(m, "blend", bdaudit::blend_cpu, BDAUDIT_CUDA_KERNEL(blend_cuda));
    Operator<bdaudit::Warp, const Byte*, const std::int32_t*, const Size*, const Byte*, Byte*, Size, Size, Size, Size,
             float, float>::define(m, "warp", bdaudit::warp_cpu, BDAUDIT_CUDA_KERNEL(warp_cuda));
    Operator<bdaudit::SampleLosses, const void*, const Size*, float*, Size*, Size*, Size, Size, Size>::define(
        m, "sample_losses", bdaudit::sample_losses_cpu, BDAUDIT_CUDA_KERNEL(sample_losses_cuda));
    Operator<bdaudit::MinClassDistance, const void*, const float*, const Size*, float*, Size, Size, Size, Size>::define(
        m, "min_class_distance", bdaudit::min_class_distance_cpu, BDAUDIT_CUDA_KERNEL(min_class_distance_cuda));
    Operator<bdaudit::ClassMeans, const void*, const Size*, float*, Size*, double*, Size, Size, Size, Size, Size>::define(
        m, "class_means", bdaudit::class_means_cpu, BDAUDIT_CUDA_KERNEL(class_means_cuda));
}
