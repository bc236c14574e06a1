// The Python module torch_fastinit._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <structmember.h>

#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "cpu.h"
#ifdef FASTINIT_CUDA
#include "cuda.h"
#endif
#include "lower.h"
#include "statistics.h"

namespace py = pybind11;

namespace {

using fastinit::Description;
using fastinit::DType;
using fastinit::Fill;
using fastinit::Form;
using fastinit::Kind;
using fastinit::Owned;

template <class T>
py::tuple tuple_of(const fastinit::TruncatedNormal<T>& c) {
  // What all forms have comes first.
  switch (c.form) {
    case Form::near:
      return py::make_tuple(c.lo, c.hi, c.unit, c.anchor, c.step, c.base_lower, c.base_upper, c.mean, c.std, c.x_step,
                            c.x_lower, c.x_upper);
    case Form::far:
      return py::make_tuple(c.lo, c.hi, c.unit, c.anchor, c.step, c.base_lower, c.near, c.reach, c.kappa, c.psi);
    default:
      return py::make_tuple(c.lo, c.hi, c.unit, c.anchor, c.c0, c.c1, c.c2, c.c3, c.c4, c.c5);
  }
}

template <class T>
py::tuple tuple_of(const fastinit::Mixture* mixture) {
  const auto* c = reinterpret_cast<const fastinit::Component<T>*>(mixture + 1);
  py::list all;
  for (int32_t i = 0; i < mixture->count; ++i, ++c) {
    all.append(py::make_tuple(c->first, c->last, c->unit, c->scale, c->start, c->hi));
  }
  return py::tuple(all);
}

// The constants of a fill in float (T = float) or in double.
template <class T>
void add_constants(py::dict& out, const Fill& fill, const fastinit::Uniform<T>& uniform,
                   const fastinit::Normal<T>& normal, const fastinit::TruncatedNormal<T>& truncated,
                   const fastinit::Normal<T>& sparse) {
  if (fill.kind == Kind::uniform) {
    out["constants"] = py::make_tuple(uniform.scale, uniform.start, uniform.lo, uniform.hi);
  } else if (fill.kind == Kind::normal || fill.kind == Kind::sparse) {
    const fastinit::Normal<T>& c = fill.kind == Kind::normal ? normal : sparse;
    out["constants"] = py::make_tuple(c.mean, c.std);
  } else if (fill.kind == Kind::truncated_normal) {
    out["constants"] = tuple_of(truncated);
    out["threshold"] = truncated.threshold;
    out["form"] = static_cast<int>(truncated.form);
  } else if (fill.kind == Kind::mixture) {
    out["components"] = tuple_of<T>(fill.constants.mixture);
    out["form"] = fill.constants.mixture->normals;
  }
}

// A fill as Python sees it: for a backend that is not compiled into this module.
py::dict describe(const Fill& fill) {
  using namespace py::literals;
  const auto list = [&](const int64_t* values) {
    return py::tuple(py::cast(std::vector<int64_t>(values, values + fill.dims)));
  };
  const bool f64 = fill.dtype == DType::f64;
  py::list program;
  for (const fastinit::Step* step = fill.program; step != fill.program + fill.steps; ++step) {
    program.append(py::make_tuple(static_cast<int>(step->op), static_cast<int>(step->dtype),
                                  f64 ? step->f64 : static_cast<double>(step->f32)));
  }
  py::dict out("tensor"_a = fill.tensor, "data"_a = reinterpret_cast<uintptr_t>(fill.data),
               "kind"_a = static_cast<int>(fill.kind), "dtype"_a = static_cast<int>(fill.dtype),
               "item_size"_a = fill.item_size, "sizes"_a = list(fill.sizes), "strides"_a = list(fill.strides),
               "logical_strides"_a = list(fill.logical_strides), "first"_a = fill.first,
               "first_block"_a = fill.first_block, "seed"_a = fill.seed, "stream"_a = fill.stream,
               "program"_a = py::tuple(program), "pattern"_a = py::make_tuple(fill.pattern[0], fill.pattern[1]));
  const fastinit::Constants& c = fill.constants;
  f64 ? add_constants(out, fill, c.uniform_f64, c.normal_f64, c.truncated_f64, c.sparse.normal_f64)
      : add_constants(out, fill, c.uniform_f32, c.normal_f32, c.truncated_f32, c.sparse.normal_f32);
  const fastinit::Sparse& s = c.sparse;
  const fastinit::Diagonals& d = c.diagonals;
  if (fill.kind == Kind::sparse) out["sparse"] = py::make_tuple(s.rows, s.cols, s.zeros, s.row0, s.col0, s.stream);
  if (fill.kind == Kind::diagonals) out["diagonals"] = py::make_tuple(d.start, d.groups, d.group_step, d.count, d.step);
  return out;
}

// ---- a fill, from Python to C++: by hand, since the casts of pybind11 take several times as long ------------------

py::object owned(PyObject* object) {
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// The name of an attribute, and where it lies in objects of the class that had it last: the attributes of fills and
// initializers are slots, and to read them where they lie takes a fraction of the time that a look-up does.
class Name {
 public:
  explicit Name(const char* name) : name_(PyUnicode_InternFromString(name)) {}
  PyObject* ptr() const { return name_; }

  py::object of(PyObject* object) {
    if (Py_TYPE(object) != class_) find(Py_TYPE(object));
    if (offset_ > 0) {
      PyObject* const value = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_);
      if (value != nullptr) return py::reinterpret_borrow<py::object>(value);
    }
    return owned(PyObject_GetAttr(object, name_));
  }
  py::object of(const py::object& object) { return of(object.ptr()); }

 private:
  void find(PyTypeObject* type) {
    Py_INCREF(type);
    Py_XDECREF(class_);
    class_ = type;
    offset_ = 0;
    const py::object found = py::getattr(reinterpret_cast<PyObject*>(type), name_, py::none());
    if (Py_TYPE(found.ptr()) != &PyMemberDescr_Type) return;
    const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
    if (member->type == T_OBJECT_EX) offset_ = member->offset;
  }

  PyObject* const name_;
  PyTypeObject* class_ = nullptr;
  Py_ssize_t offset_ = 0;
};

struct Names {
  // Of a Fill, a Region, an initializer, a Step, a tensor.
  Name tensor{"tensor"}, initializer{"initializer"}, seed{"seed"}, stream{"stream"}, region{"region"}, second{"second"};
  Name shape{"shape"}, offsets{"offsets"};
  Name kind{"kind"}, steps{"steps"}, draw{"draw"}, drawn{"dtype"}, words{"words"}, offset{"offset"}, flat{"params"};
  Name op{"op"}, operand{"operand"}, dtype{"dtype"};
  Name data_ptr{"data_ptr"}, element_size{"element_size"}, stride{"stride"}, tensor_shape{"shape"},
      tensor_dtype{"dtype"};
  // The parameters of each kind, in the order in which lower.cpp takes them.
  std::vector<Name> params[9] = {{},                                                 // bits
                                 {},                                                 // constant
                                 {Name("a"), Name("b")},                             // uniform
                                 {Name("mean"), Name("std")},                        // normal
                                 {Name("mean"), Name("std"), Name("a"), Name("b")},  // truncated_normal
                                 {Name("sparsity"), Name("std")},                    // sparse
                                 {},                                                 // eye
                                 {Name("groups")},                                   // dirac
                                 {}};                                                // mixture, of any number: `flat`
};

Names& names() {
  static Names& all = *new Names;  // never taken down: Python is gone by then
  return all;
}

py::object call(const py::object& of, const Name& name) {
  return owned(PyObject_CallMethodNoArgs(of.ptr(), name.ptr()));
}

template <class T>
T checked(T value) {
  if (value == static_cast<T>(-1) && PyErr_Occurred()) throw py::error_already_set();
  return value;
}
int64_t integer(PyObject* object) { return checked<int64_t>(PyLong_AsLongLong(object)); }
double real(const py::object& object) { return checked<double>(PyFloat_AsDouble(object.ptr())); }
// Any integer modulo 2^64.
uint64_t word(PyObject* object) { return checked<uint64_t>(PyLong_AsUnsignedLongLongMask(object)); }
uint64_t word(const py::object& object) { return word(object.ptr()); }

void integers(const py::object& tuple, std::vector<int64_t>& to) {
  if (!PyTuple_Check(tuple.ptr())) throw py::type_error("sizes, strides and offsets are tuples");
  to.clear();
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()); ++i)
    to.push_back(integer(PyTuple_GET_ITEM(tuple.ptr(), i)));
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

// Reads fills (torch_fastinit/ops.py), which were made ready there, from an iterable.
class Reader {
 public:
  // `codes` is a dictionary from dtypes; a dtype that it lacks is one of so many bytes.
  Reader(PyObject* fills, PyObject* codes) : codes_(codes), fills_(owned(PyObject_GetIter(fills))) {}

  // Appends up to `most` of them, and their tensors. False if there are no more.
  bool read(size_t most, std::vector<Fill>& to, Owned& owned, std::vector<py::object>& tensors) {
    for (size_t n = 0; n < most; ++n) {
      const py::object fill = py::reinterpret_steal<py::object>(PyIter_Next(fills_.ptr()));
      if (!fill) {
        if (PyErr_Occurred()) throw py::error_already_set();
        return false;
      }
      tensors.push_back(names().tensor.of(fill));
      read_tensor(tensors.back());
      read_values(fill);
      lower(fill_, to, owned);
      ++fill_.tensor;
    }
    return true;
  }

 private:
  int64_t code_of(const py::object& dtype, int64_t otherwise) {
    PyObject* const code = PyDict_GetItemWithError(codes_, dtype.ptr());
    if (code != nullptr) return integer(code);
    if (PyErr_Occurred()) throw py::error_already_set();
    return otherwise;
  }

  void read_tensor(const py::object& tensor) {
    Names& n = names();
    fill_.address = integer(call(tensor, n.data_ptr).ptr());
    fill_.dtype = code_of(n.tensor_dtype.of(tensor), -1);
    if (fill_.dtype < 0)
      fill_.dtype = static_cast<int64_t>(DType::opaque) + integer(call(tensor, n.element_size).ptr());
    const py::object shape = n.tensor_shape.of(tensor), strides = call(tensor, n.stride);
    integers(shape, fill_.sizes);
    integers(strides, fill_.strides);
    bool repeats = false, empty = false;
    for (size_t d = 0; d < fill_.sizes.size() && d < fill_.strides.size(); ++d) {
      repeats = repeats || (fill_.sizes[d] > 1 && fill_.strides[d] == 0);
      empty = empty || fill_.sizes[d] == 0;
    }
    if (repeats && !empty) refuse_overlap(shape, strides);
  }

  void read_values(const py::object& fill) {
    Names& n = names();
    fill_.seed = word(n.seed.of(fill));
    fill_.stream = word(n.stream.of(fill));
    const py::object region = n.region.of(fill);
    fill_.has_region = !region.is_none();
    if (fill_.has_region) {
      integers(n.shape.of(region), fill_.shape);
      integers(n.offsets.of(region), fill_.offsets);
    }
    py::object initializer = n.initializer.of(fill);
    const py::object steps = n.steps.of(initializer);
    fill_.steps.clear();
    if (py::len(steps) > 0) {
      fill_.drawn = code_of(n.drawn.of(initializer), -1);
      for (const py::handle step : steps) read_step(py::reinterpret_borrow<py::object>(step));
      initializer = n.draw.of(initializer);
    }
    fill_.kind = integer(n.kind.of(initializer).ptr());
    if (fill_.kind < 0 || fill_.kind >= 9) return;  // lower() refuses it
    double* param = fill_.params;
    for (Name& name : n.params[fill_.kind]) *param++ = real(name.of(initializer));
    switch (static_cast<Kind>(fill_.kind)) {
      case Kind::bits: {
        const py::object offset = n.offset.of(initializer);
        fill_.offset_low = word(offset);
        fill_.offset_high = word(offset >> py::int_(64));
        break;
      }
      case Kind::constant: {
        const py::tuple words = n.words.of(initializer);
        for (size_t i = 0; i < 2; ++i) fill_.words[i] = word(py::object(words[i]));
        break;
      }
      case Kind::mixture: {
        const py::tuple flat = n.flat.of(initializer);
        fill_.components.clear();
        for (const py::handle number : flat)
          fill_.components.push_back(real(py::reinterpret_borrow<py::object>(number)));
        break;
      }
      case Kind::sparse: {
        const py::object second = n.second.of(fill);
        if (second.is_none()) throw std::invalid_argument("malformed fill: sparse without its second stream");
        fill_.second = word(second);
        break;
      }
      default:
        break;
    }
  }

  void read_step(const py::object& step) {
    Names& n = names();
    fill_.steps.push_back({integer(n.op.of(step).ptr()), code_of(n.dtype.of(step), -1), real(n.operand.of(step))});
  }

  PyObject* const codes_;
  const py::object fills_;
  Description fill_;  // used again for each, since its lists have memory by then
};

// A batch of fewer elements keeps the GIL: to let go of it and take it again would cost as much as to fill them.
constexpr int64_t kElementsWithGil = 1 << 12;

int as_threads(int64_t threads) { return threads > 1 << 20 ? 1 << 20 : threads < 1 ? 1 : static_cast<int>(threads); }

bool as_bool(PyObject* object) { return checked<int>(PyObject_IsTrue(object)) != 0; }

// Chunk size, and chunks in flight while Python describes the next.
constexpr size_t kChunk = 256, kInFlight = 4;

// Chunks that other threads have begun. They are finished, and their tensors held until then, whatever happens.
class InFlight {
 public:
  InFlight(int threads, bool fresh, bool huge_pages) : threads_(threads), fresh_(fresh), huge_pages_(huge_pages) {}
  ~InFlight() { finish(); }
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  bool empty() const { return chunks_.empty(); }
  void begin(std::vector<Fill> fills, Owned owned, std::vector<py::object> tensors) {
    if (chunks_.size() == kInFlight) finish_first();
    if (huge_pages_) fastinit::ask_for_huge_pages(fills);
    chunks_.push_back(
        {std::move(tensors), std::move(owned), std::make_unique<fastinit::Batch>(std::move(fills), threads_, fresh_)});
  }
  void finish() {
    while (!empty()) finish_first();
  }

 private:
  struct Chunk {
    std::vector<py::object> tensors;
    Owned owned;
    std::unique_ptr<fastinit::Batch> batch;
  };

  void finish_first() {
    {
      const py::gil_scoped_release release;
      chunks_.front().batch->finish();
    }
    chunks_.erase(chunks_.begin());
  }

  const int threads_;
  const bool fresh_, huge_pages_;
  std::vector<Chunk> chunks_;  // the oldest first
};

void fill_cpu(PyObject* fills, PyObject* codes, int threads, bool fresh, bool huge_pages) {
  Reader reader(fills, codes);
  InFlight in_flight(threads, fresh, huge_pages);
  for (bool more = true; more;) {
    std::vector<Fill> chunk;
    Owned owned;
    std::vector<py::object> tensors;
    more = reader.read(kChunk, chunk, owned, tensors);
    if (!more && in_flight.empty()) {
      int64_t elements = 0;
      for (const Fill& fill : chunk) elements += fill.numel();
      if (elements < kElementsWithGil) return fastinit::fill_here(chunk);
    }
    in_flight.begin(std::move(chunk), std::move(owned), std::move(tensors));
  }
  in_flight.finish();
}

// fill_cpu(fills, codes, threads, fresh, huge_pages) for CPython itself: pybind11's calls take as long as a small fill.
PyObject* fill_cpu_python(PyObject*, PyObject* const* args, Py_ssize_t count) {
  try {
    if (count != 5) throw py::type_error("fill_cpu takes fills, codes, threads, fresh and huge_pages");
    fill_cpu(args[0], args[1], as_threads(integer(args[2])), as_bool(args[3]), as_bool(args[4]));
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

// (address, count, dtype's code) of elements that lie next to one another.
using Spans = std::vector<std::tuple<uintptr_t, int64_t, int64_t>>;

std::vector<fastinit::Span> spans_of(const Spans& spans) {
  std::vector<fastinit::Span> all;
  for (const auto& [address, count, dtype] : spans) {
    all.push_back({reinterpret_cast<const void*>(address), count, static_cast<DType>(dtype)});
  }
  return all;
}

// (low, high) of a histogram for each span, or None for no histogram.
using Ranges = std::vector<std::optional<std::pair<double, double>>>;

std::vector<fastinit::Histogram> wanted_of(const Ranges& ranges, int bins, int64_t most) {
  std::vector<fastinit::Histogram> all;
  for (const auto& range : ranges) {
    const auto [low, high] = range.value_or(std::make_pair(0.0, 0.0));
    all.push_back({low, high, range ? bins : 0, most});
  }
  return all;
}

PyMethodDef kFillCpu = {"fill_cpu", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fill_cpu_python)),
                        METH_FASTCALL, "Run fills (torch_fastinit/ops.py, made ready there)."};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled backends of torch_fastinit.";
  m.attr("fill_cpu") = owned(PyCFunction_New(&kFillCpu, nullptr));
  m.def(
      "lowered",
      [](py::handle fills, py::handle codes) {
        std::vector<Fill> all;
        Owned owned;
        std::vector<py::object> tensors;
        Reader(fills.ptr(), codes.ptr()).read(SIZE_MAX, all, owned, tensors);
        py::list described;
        for (const Fill& fill : all) described.append(describe(fill));
        return described;
      },
      py::arg("fills"), py::arg("codes"),
      "The fills with their layouts merged and every constant derived, as csrc/fill.h has them.");
#ifdef FASTINIT_CUDA
  m.def(
      "fill_cuda",
      [](py::handle fills, py::handle codes, int device, uintptr_t stream) {
        std::vector<Fill> all;
        Owned owned;
        std::vector<py::object> tensors;
        Reader(fills.ptr(), codes.ptr()).read(SIZE_MAX, all, owned, tensors);
        const py::gil_scoped_release release;
        fastinit::fill_cuda(all, device, stream);
      },
      py::arg("fills"), py::arg("codes"), py::arg("device"), py::arg("stream"),
      "Enqueue fills on a CUDA stream, without the GIL.");
  m.def("cuda_error", &fastinit::cuda_error, py::arg("device"),
        "Why this device cannot run the CUDA kernels; empty if it can.");
  m.def("has_cuda", [] { return true; }, "Whether this build has CUDA kernels.");
#else
  m.def("has_cuda", [] { return false; }, "Whether this build has CUDA kernels.");
#endif
  m.def(
      "statistics",
      [](const Spans& spans, const Ranges& ranges, int bins, int64_t most, int64_t threads) {
        std::vector<fastinit::Statistics> found;
        {
          const py::gil_scoped_release release;
          found = fastinit::statistics(spans_of(spans), wanted_of(ranges, bins, most), as_threads(threads));
        }
        py::list out;
        for (const fastinit::Statistics& s : found) {
          const py::tuple parts(py::cast(s.parts));
          out.append(py::make_tuple(s.count, s.mean, s.std, s.min, s.max, s.zeros, s.nonfinite, parts));
        }
        return out;
      },
      py::arg("spans"), py::arg("ranges"), py::arg("bins"), py::arg("most"), py::arg("threads"),
      "What the elements of each span are like, with a histogram of its range, if it has one.");
  m.def(
      "histograms",
      [](const Spans& spans, const Ranges& ranges, int bins, int64_t most, int64_t threads) {
        std::vector<std::vector<int64_t>> found;
        {
          const py::gil_scoped_release release;
          found = fastinit::histograms(spans_of(spans), wanted_of(ranges, bins, most), as_threads(threads));
        }
        py::list out;
        for (const std::vector<int64_t>& counts : found) out.append(py::tuple(py::cast(counts)));
        return out;
      },
      py::arg("spans"), py::arg("ranges"), py::arg("bins"), py::arg("most"), py::arg("threads"),
      "How many elements of each span, or of a sample, lie in each part of its range.");
  m.def("instruction_sets", &fastinit::instruction_sets, "The instruction sets usable on this machine, best first.");
  m.def("instruction_set", &fastinit::instruction_set, "The instruction set in use.");
  m.def("set_instruction_set", &fastinit::set_instruction_set, py::arg("name"),
        "Use this instruction set; the values do not depend on it.");
}
