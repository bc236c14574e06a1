// The Python module torch_fastinit._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

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

// ---- a batch, from Python to C++: by hand, since the lists of pybind11 take several times as long -----------------

int64_t number(PyObject* item, int64_t) { return PyLong_AsLongLong(item); }
double number(PyObject* item, double) { return PyFloat_AsDouble(item); }

template <class T>
T number(PyObject* item) {
  const T value = number(item, T{});
  if (value == T{-1} && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Calls `use` with every item of a list or tuple.
template <class Use>
void each(py::handle list, const Use& use) {
  if (PyTuple_Check(list.ptr())) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(list.ptr()); ++i) use(PyTuple_GET_ITEM(list.ptr(), i));
  } else if (PyList_Check(list.ptr())) {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list.ptr()); ++i) use(PyList_GET_ITEM(list.ptr(), i));
  } else {
    throw py::type_error("a batch is made of lists and tuples");
  }
}

template <class T>
std::vector<T> numbers(py::handle list) {
  std::vector<T> all;
  all.reserve(py::len(list));
  each(list, [&](PyObject* item) { all.push_back(number<T>(item)); });
  return all;
}

// An expanded tensor: two of its elements would be one place in memory. Raises what torch does.
[[noreturn]] void refuse_overlap(const py::object& shape, const py::object& strides) {
  PyErr_Format(
      PyExc_RuntimeError,
      "unsupported operation: more than one element of the written-to tensor refers to a single memory location "
      "(shape %R, strides %R). Please clone() the tensor before performing the operation.",
      py::tuple(py::list(shape)).ptr(), strides.ptr());
  throw py::error_already_set();
}

// Appends a tensor's address, dtype code, dimensions, sizes and strides. `codes` is a dictionary from dtypes; a dtype
// that it lacks is one of so many bytes.
void add_layout(std::vector<int64_t>& rows, PyObject* tensor, PyObject* codes) {
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  static PyObject* const dtype = PyUnicode_InternFromString("dtype");
  static PyObject* const element_size = PyUnicode_InternFromString("element_size");
  static PyObject* const shape = PyUnicode_InternFromString("shape");
  static PyObject* const stride = PyUnicode_InternFromString("stride");
  rows.push_back(number<int64_t>(owned(PyObject_CallMethodNoArgs(tensor, data_ptr)).ptr()));
  PyObject* const code = PyDict_GetItemWithError(codes, owned(PyObject_GetAttr(tensor, dtype)).ptr());
  if (code == nullptr && PyErr_Occurred()) throw py::error_already_set();
  rows.push_back(code != nullptr ? number<int64_t>(code)
                                 : static_cast<int64_t>(DType::opaque) +
                                       number<int64_t>(owned(PyObject_CallMethodNoArgs(tensor, element_size)).ptr()));
  const py::object sizes = owned(PyObject_GetAttr(tensor, shape));
  const py::object strides = owned(PyObject_CallMethodNoArgs(tensor, stride));
  const size_t dims = py::len(sizes), first = rows.size() + 1;
  rows.push_back(static_cast<int64_t>(dims));
  each(sizes, [&](PyObject* size) { rows.push_back(number<int64_t>(size)); });
  each(strides, [&](PyObject* size) { rows.push_back(number<int64_t>(size)); });
  bool repeats = false, empty = false;
  for (size_t d = first; d < first + dims; ++d) {
    repeats = repeats || (rows[d] > 1 && rows[d + dims] == 0);
    empty = empty || rows[d] == 0;
  }
  if (repeats && !empty) refuse_overlap(sizes, strides);
}

std::vector<int64_t> layouts(py::handle tensors, py::handle codes) {
  std::vector<int64_t> rows;
  rows.reserve(8 * py::len(tensors));
  each(tensors, [&](PyObject* tensor) { add_layout(rows, tensor, codes.ptr()); });
  return rows;
}

// `tensors` are tensors, or what `layouts` gives if there is no dictionary.
std::vector<Fill> lower(py::handle tensors, py::handle codes, py::handle recipe, py::handle params) {
  return fastinit::lower(codes.is_none() ? numbers<int64_t>(tensors) : layouts(tensors, codes),
                         numbers<int64_t>(recipe), numbers<double>(params));
}

// A batch of fewer elements keeps the GIL: to let go of it and take it again would cost as much as to fill them.
constexpr int64_t kElementsWithGil = 1 << 12;

int as_threads(int64_t threads) { return threads > 1 << 20 ? 1 << 20 : threads < 1 ? 1 : static_cast<int>(threads); }

// fill_cpu(tensors, codes, recipe, params, threads) for CPython itself: pybind11's calls take as long as a small fill.
PyObject* fill_cpu(PyObject*, PyObject* const* args, Py_ssize_t count) {
  try {
    if (count != 5) throw py::type_error("fill_cpu takes tensors, codes, recipe, params and threads");
    std::vector<Fill> fills = lower(args[0], args[1], args[2], args[3]);
    const int threads = as_threads(number<int64_t>(args[4]));
    int64_t elements = 0;
    for (const Fill& fill : fills) elements += fill.numel();
    if (elements < kElementsWithGil) {
      fastinit::fill_cpu(std::move(fills), threads);
    } else {
      const py::gil_scoped_release release;
      fastinit::fill_cpu(std::move(fills), threads);
    }
    Py_RETURN_NONE;
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef kFillCpu = {"fill_cpu", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fill_cpu)),
                        METH_FASTCALL, "Run a batch of fills (see torch_fastinit/ops.py for its form)."};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled backends of torch_fastinit.";
  m.def("layouts", &layouts, py::arg("tensors"), py::arg("codes"),
        "Address, dtype code and layout of each tensor, as one flat list; `codes` is a dictionary from dtypes.");
  m.attr("fill_cpu") = owned(PyCFunction_New(&kFillCpu, nullptr));
  // The tensors' memory has to be there until it is finished, which it also is when this object goes.
  py::class_<fastinit::Batch>(m, "BatchOnCpu", "A batch of fills that other threads have begun.")
      .def(py::init([](py::handle tensors, py::handle codes, py::handle recipe, py::handle params, int64_t threads,
                       bool huge_pages) {
             std::vector<Fill> fills = lower(tensors, codes, recipe, params);
             if (huge_pages) fastinit::ask_for_huge_pages(fills);
             return std::make_unique<fastinit::Batch>(std::move(fills), as_threads(threads), true);
           }),
           py::arg("tensors"), py::arg("codes"), py::arg("recipe"), py::arg("params"), py::arg("threads"),
           py::arg("huge_pages"))
      .def("finish", &fastinit::Batch::finish, py::call_guard<py::gil_scoped_release>(),
           "Take part in what is left of it, without the GIL, and wait for the other threads.");
  m.def(
      "lowered",
      [](py::handle tensors, py::handle codes, py::handle recipe, py::handle params) {
        py::list all;
        for (const Fill& fill : lower(tensors, codes, recipe, params)) all.append(describe(fill));
        return all;
      },
      py::arg("tensors"), py::arg("codes"), py::arg("recipe"), py::arg("params"),
      "The fills of a batch with their layouts merged and every constant derived, as csrc/fill.h has them.");
#ifdef FASTINIT_CUDA
  m.def(
      "fill_cuda",
      [](py::handle tensors, py::handle codes, py::handle recipe, py::handle params, int device, uintptr_t stream) {
        const std::vector<Fill> fills = lower(tensors, codes, recipe, params);
        const py::gil_scoped_release release;
        fastinit::fill_cuda(fills, device, stream);
      },
      py::arg("tensors"), py::arg("codes"), py::arg("recipe"), py::arg("params"), py::arg("device"), py::arg("stream"),
      "Enqueue a batch of fills on a CUDA stream, without the GIL.");
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
