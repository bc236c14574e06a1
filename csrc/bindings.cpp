// The Python module torch_fastinit._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu.h"
#ifdef FASTINIT_CUDA
#include "cuda.h"
#endif
#include "lower.h"

namespace py = pybind11;

namespace {

using fastinit::DType;
using fastinit::Fill;
using fastinit::Kind;

template <class T>
void put(py::dict& out, const fastinit::Uniform<T>& c) {
  out["constants"] = py::make_tuple(c.scale, c.start, c.lo, c.hi);
}
template <class T>
void put(py::dict& out, const fastinit::Normal<T>& c) {
  out["constants"] = py::make_tuple(c.mean, c.std);
}
template <class T>
void put(py::dict& out, const fastinit::TruncatedNormal<T>& c) {
  out["threshold"] = c.threshold;
  out["far"] = c.far != 0;
  const py::tuple far = py::make_tuple(c.step, c.base_lower, c.lo, c.hi, c.kappa, c.psi, c.near, c.reach);
  const py::tuple near =
      py::make_tuple(c.step, c.base_lower, c.base_upper, c.x_step, c.x_lower, c.x_upper, c.mean, c.std, c.lo, c.hi);
  out["constants"] = c.far ? far : near;
}

// A fill as Python sees it: for a backend that is not compiled into this module.
py::dict describe(const Fill& fill) {
  py::dict out;
  const auto list = [&](const int64_t* values) {
    return py::tuple(py::cast(std::vector<int64_t>(values, values + fill.dims)));
  };
  out["tensor"] = fill.tensor;
  out["data"] = reinterpret_cast<uintptr_t>(fill.data);
  out["kind"] = static_cast<int>(fill.kind);
  out["dtype"] = static_cast<int>(fill.dtype);
  out["item_size"] = fill.item_size;
  out["sizes"] = list(fill.sizes);
  out["strides"] = list(fill.strides);
  out["jumps"] = list(fill.jumps);
  out["first"] = fill.first;
  out["first_block"] = fill.first_block;
  out["seed"] = fill.seed;
  out["stream"] = fill.stream;
  const bool f64 = fill.dtype == DType::f64;
  switch (fill.kind) {
    case Kind::uniform:
      f64 ? put(out, fill.uniform_f64) : put(out, fill.uniform_f32);
      break;
    case Kind::normal:
      f64 ? put(out, fill.normal_f64) : put(out, fill.normal_f32);
      break;
    case Kind::truncated_normal:
      f64 ? put(out, fill.truncated_f64) : put(out, fill.truncated_f32);
      break;
    case Kind::sparse: {
      const fastinit::Sparse& c = fill.sparse;
      out["constants"] = py::make_tuple(0.0, f64 ? c.std_f64 : static_cast<double>(c.std_f32));
      out["rows"] = c.rows;
      out["cols"] = c.cols;
      out["zeros"] = c.zeros;
      out["row0"] = c.row0;
      out["col0"] = c.col0;
      out["second"] = c.stream;
      break;
    }
    case Kind::diagonals: {
      const fastinit::Diagonals& c = fill.diagonals;
      out["diagonals"] = py::make_tuple(c.start, c.groups, c.group_step, c.count, c.step);
      break;
    }
    default:
      break;
  }
  py::list program;
  for (int s = 0; s < fill.steps; ++s) {
    const fastinit::Step& step = fill.program[s];
    program.append(py::make_tuple(static_cast<int>(step.op), static_cast<int>(step.dtype),
                                  f64 ? step.f64 : static_cast<double>(step.f32)));
  }
  out["program"] = py::tuple(program);
  out["pattern"] = py::make_tuple(fill.pattern[0], fill.pattern[1]);
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled backends of torch_fastinit.";
  m.def(
      "fill_cpu",
      [](const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe, const std::vector<double>& params,
         int threads) { fastinit::fill_cpu(fastinit::lower(tensors, recipe, params), threads); },
      py::arg("tensors"), py::arg("recipe"), py::arg("params"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(), "Run a batch of fills (see torch_fastinit/ops.py for its form).");
  m.def(
      "lowered",
      [](const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe, const std::vector<double>& params) {
        py::list all;
        for (const Fill& fill : fastinit::lower(tensors, recipe, params)) all.append(describe(fill));
        return all;
      },
      py::arg("tensors"), py::arg("recipe"), py::arg("params"),
      "The fills of a batch with their layouts merged and every constant derived, as csrc/fill.h has them.");
#ifdef FASTINIT_CUDA
  m.def(
      "fill_cuda",
      [](const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe, const std::vector<double>& params,
         int device,
         uintptr_t stream) { fastinit::fill_cuda(fastinit::lower(tensors, recipe, params), device, stream); },
      py::arg("tensors"), py::arg("recipe"), py::arg("params"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(), "Enqueue a batch of fills on a CUDA stream.");
  m.def("cuda_error", &fastinit::cuda_error, "Why this machine cannot run the CUDA kernels; empty if it can.");
  m.def("has_cuda", [] { return true; }, "Whether this build has CUDA kernels.");
#else
  m.def("has_cuda", [] { return false; }, "Whether this build has CUDA kernels.");
#endif
  m.def("instruction_sets", &fastinit::instruction_sets, "The instruction sets usable on this machine, best first.");
  m.def("instruction_set", &fastinit::instruction_set, "The instruction set in use.");
  m.def("set_instruction_set", &fastinit::set_instruction_set, py::arg("name"),
        "Use this instruction set; the values do not depend on it.");
}
