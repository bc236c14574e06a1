// The Python module torch_fastinit._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu.h"
#include "lower.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled backends of torch_fastinit.";
  m.def(
      "fill_cpu",
      [](const std::vector<int64_t>& tensors, const std::vector<int64_t>& recipe, const std::vector<double>& params,
         int threads) { fastinit::fill_cpu(fastinit::lower(tensors, recipe, params), threads); },
      py::arg("tensors"), py::arg("recipe"), py::arg("params"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(), "Run a batch of fills (see torch_fastinit/ops.py for its form).");
  m.def("instruction_sets", &fastinit::instruction_sets, "The instruction sets usable on this machine, best first.");
  m.def("instruction_set", &fastinit::instruction_set, "The instruction set in use.");
  m.def("set_instruction_set", &fastinit::set_instruction_set, py::arg("name"),
        "Use this instruction set; the values do not depend on it.");
}
