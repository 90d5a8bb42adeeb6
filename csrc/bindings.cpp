// The kernels as Python sees them: addresses and sizes, no tensors. bdaudit/ops checks everything before it calls.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "blend.h"
#include "cpu.h"

// Raise it, here and in bdaudit/ops/extension.py, with every change to a signature or to its meaning: a stale build is
// then refused.
#define BDAUDIT_ABI 1

namespace py = pybind11;
using Address = std::uintptr_t;

namespace {

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);  // NOLINT: the whole point of this file
}

bdaudit::Blend blend_task(Address images, Address pattern, Address weight, Address slots, Address blocks, Address out,
                          std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t masks,
                          std::int64_t bh, std::int64_t bw) {
    return {at<const std::uint8_t>(images), at<const std::uint8_t>(pattern), at<const std::int16_t>(weight),
            at<const std::int64_t>(slots), at<const std::uint8_t>(blocks), at<std::uint8_t>(out),
            n, c, h, w, masks, bh, bw};
}

// -1 asks for the best; any other one above what this processor has is lowered to it.
bdaudit::Isa isa_of(int isa) {
    const int best = static_cast<int>(bdaudit::best_isa());
    return static_cast<bdaudit::Isa>(isa < 0 ? best : std::min(isa, best));
}

void blend_cpu(Address images, Address pattern, Address weight, Address slots, Address blocks, Address out,
               std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t masks, std::int64_t bh,
               std::int64_t bw, int threads, int isa) {
    const auto task = blend_task(images, pattern, weight, slots, blocks, out, n, c, h, w, masks, bh, bw);
    bdaudit::blend_cpu(task, threads, isa_of(isa));
}

void blend_cuda(Address images, Address pattern, Address weight, Address slots, Address blocks, Address out,
                std::int64_t n, std::int64_t c, std::int64_t h, std::int64_t w, std::int64_t masks, std::int64_t bh,
                std::int64_t bw, [[maybe_unused]] int device, [[maybe_unused]] Address stream) {
    [[maybe_unused]] const auto task =
        blend_task(images, pattern, weight, slots, blocks, out, n, c, h, w, masks, bh, bw);
#ifdef BDAUDIT_WITH_CUDA
    bdaudit::blend_cuda(task, device, stream);
#else
    throw std::runtime_error("bdaudit was built without CUDA");
#endif
}

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

    const auto release = py::call_guard<py::gil_scoped_release>();
    m.def("blend_cpu", &blend_cpu, release, py::arg("images"), py::arg("pattern"), py::arg("weight"), py::arg("slots"),
          py::arg("blocks"), py::arg("out"), py::arg("n"), py::arg("c"), py::arg("h"), py::arg("w"), py::arg("masks"),
          py::arg("bh"), py::arg("bw"), py::arg("threads"), py::arg("isa") = -1);
    m.def("blend_cuda", &blend_cuda, release, py::arg("images"), py::arg("pattern"), py::arg("weight"),
          py::arg("slots"), py::arg("blocks"), py::arg("out"), py::arg("n"), py::arg("c"), py::arg("h"), py::arg("w"),
          py::arg("masks"), py::arg("bh"), py::arg("bw"), py::arg("device"), py::arg("stream"));
}
