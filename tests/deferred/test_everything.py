"""Every public factory of torch, every distribution and every layer, in a constructor, as in eager code.

The lists are torch's own: what a new version adds fails here until it has arguments.
"""

from __future__ import annotations

import gc
import math
import warnings

import numpy as np
import pytest
import torch
from torch import distributions, nn

import torch_fastinit as fastinit


@pytest.fixture(scope="module", autouse=True)
def few_objects():
    """Parity mode looks at all objects for other parameters of its tape: those from before are left out."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def outcome(make, context: bool):
    """What `make` returns as a list of tensors, materialised in parity mode; or the type of what it raises."""
    torch.manual_seed(7)
    m = nn.Module()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if context:
                with fastinit.deferred():
                    m.made = flat(make())
                    m.after = [torch.rand(3)]
                fastinit.materialize(m, replay="torch")
            else:
                m.made = flat(make())
                m.after = [torch.rand(3)]
    except Exception as error:
        return type(error), str(error)
    return [*m.made, *m.after]


def flat(made) -> list:
    if isinstance(made, dict):
        made = list(made.values())
    if isinstance(made, (list, tuple)):
        return [t for one in made for t in flat(one)]
    return [made.detach() if isinstance(made, torch.Tensor) and made.requires_grad else made]


def each(calls) -> list:
    """The results of calls, or the types of what they raise."""
    results = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:
            results.append(type(error))
    return results


def check(make) -> None:
    eager, ours = outcome(make, False), outcome(make, True)
    if isinstance(eager, tuple):
        assert ours[0] is eager[0], (eager, ours)
        return
    assert isinstance(ours, list), ours
    assert len(eager) == len(ours)
    for a, b in zip(eager, ours, strict=True):
        if not isinstance(a, torch.Tensor):
            assert a == b or a is b
            continue
        assert type(b) is type(a)
        assert (a.shape, a.dtype, a.device, a.layout) == (b.shape, b.dtype, b.device, b.layout)
        if not a.is_meta and a.layout is torch.strided:
            assert a.stride() == b.stride()
            assert torch.equal(a, b) or torch.equal(a.isnan(), b.isnan()), (a, b)


# --- factories --------------------------------------------------------------------------------------------------------


def has_device(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if hasattr(packet, "overloads") else ()
    return any(argument.name == "device" for o in overloads for argument in getattr(packet, o)._schema.arguments)


PUBLIC = sorted(name for name in dir(torch) if not name.startswith("_") and name != "Generator" and has_device(name))
#: Such as are no aten operators.
MORE = ["asarray", "from_numpy", "frombuffer", "complex", "polar", "cartesian_prod", "meshgrid", "block_diag", "vander"]
MORE += ["heaviside", "bernoulli", "poisson", "multinomial", "binomial", "combinations", "tril", "triu", "diag_embed"]
MORE += ["FloatTensor", "DoubleTensor", "LongTensor", "Tensor", "BoolTensor", "dropout", "alpha_dropout", "rrelu"]

ones = lambda *shape: torch.ones(shape)  # noqa: E731
FACTORIES = {
    "arange": [lambda f: f(5), lambda f: f(1, 9, 2), lambda f: f(0.0, 1.0, 0.3), lambda f: f(3, dtype=torch.float16)],
    "as_tensor": [lambda f: f([1, 2]), lambda f: f(np.ones(2)), lambda f: f(ones(2)), lambda f: f([ones(1)[0], 2.0])],
    **{
        f"{name}_window": [lambda f: f(8), lambda f: f(7, periodic=False, dtype=torch.float64)]
        for name in ("bartlett", "blackman", "hamming", "hann", "kaiser")
    },
    "empty": [lambda f: f(2, 3).zero_(), lambda f: f((0, 3)), lambda f: f(2, 3, 1, 2).fill_(1)],
    "empty_like": [lambda f: f(ones(2, 3).t()).zero_(), lambda f: f(ones(2), device="meta")],
    "empty_permuted": [lambda f: f((2, 3), (1, 0)).zero_()],
    "empty_strided": [lambda f: f((2, 3), (1, 2)).zero_()],
    "eye": [lambda f: f(3), lambda f: f(2, 3, dtype=torch.int64)],
    "from_file": [], "empty_quantized": [],
    "full": [lambda f: f((2,), 3), lambda f: f((2,), 3.5), lambda f: f((2,), True), lambda f: f((2,), ones(1)[0] * 2)],
    "full_like": [lambda f: f(ones(2), 3), lambda f: f(ones(2), 2.5, dtype=torch.float16)],
    "linspace": [lambda f: f(0, 1, 5), lambda f: f(ones(1)[0], ones(1)[0] * 3, 5), lambda f: f(0, 1, 1)],
    "logspace": [lambda f: f(0, 1, 5), lambda f: f(0, 3, 4, base=2)],
    "normal": [
        lambda f: f(0.0, 1.0, (3,)), lambda f: f(ones(3), 2.0), lambda f: f(0.0, ones(3)),
        lambda f: f(ones(3), ones(3)),
    ],
    "ones": [lambda f: f(2, 3), lambda f: f(2, dtype=torch.bool), lambda f: f(2, dtype=torch.complex64)],
    "ones_like": [lambda f: f(ones(2, 3).t()), lambda f: f(ones(2), dtype=torch.int32)],
    "rand": [lambda f: f(2, 3), lambda f: f(20, dtype=torch.float64), lambda f: f(3, generator=torch.Generator())],
    "rand_like": [lambda f: f(ones(2, 3)), lambda f: f(ones(3, 2).t(), dtype=torch.bfloat16)],
    "randint": [lambda f: f(10, (3,)), lambda f: f(-5, 5, (3,), dtype=torch.int32)],
    "randint_like": [lambda f: f(ones(3), 10), lambda f: f(ones(3), 2, 9)],
    "randn": [lambda f: f(2, 3), lambda f: f(30), lambda f: f(3, dtype=torch.complex64)],
    "randn_like": [lambda f: f(ones(2, 3)), lambda f: f(ones(4), dtype=torch.float64)],
    "randperm": [lambda f: f(10), lambda f: f(5, dtype=torch.int32)],
    "range": [lambda f: f(0, 4), lambda f: f(0, 1, 0.25)],
    "scalar_tensor": [lambda f: f(3), lambda f: f(2.5, dtype=torch.float64)],
    "sparse_bsc_tensor": [], "sparse_bsr_tensor": [], "sparse_compressed_tensor": [], "sparse_csc_tensor": [],
    "sparse_csr_tensor": [], "sparse_coo_tensor": [],
    "tensor": [
        lambda f: f([1, 2]), lambda f: f(2.5), lambda f: f([[True], [False]]), lambda f: f(np.float32(2)),
        lambda f: f([ones(1)[0]] * 3), lambda f: f([[ones(1)[0], 2.0]]), lambda f: f([1j]), lambda f: f([]),
        lambda f: f([torch.rand(()), 1]), lambda f: f(list(torch.arange(3))), lambda f: f([ones(2), ones(2)]),
        lambda f: f([torch.rand(())], dtype=torch.int64),
    ],
    "tril_indices": [lambda f: f(3, 3), lambda f: f(2, 4, 1)],
    "triu_indices": [lambda f: f(3, 3), lambda f: f(4, 2, -1)],
    "zeros": [lambda f: f(2, 3), lambda f: f((2,), dtype=torch.float16), lambda f: f(2, device="meta")],
    "zeros_like": [lambda f: f(ones(2, 3)), lambda f: f(ones(2), device="meta")],
    "asarray": [lambda f: f([1, 2]), lambda f: f(np.ones(2)), lambda f: f([ones(1)[0]])],
    "from_numpy": [lambda f: f(np.arange(3.0))],
    "frombuffer": [lambda f: f(bytearray(8), dtype=torch.float32)],
    "complex": [lambda f: f(ones(2), ones(2))], "polar": [lambda f: f(ones(2), ones(2))],
    "cartesian_prod": [lambda f: f(ones(2), ones(3))], "meshgrid": [lambda f: f(ones(2), ones(3), indexing="ij")],
    "block_diag": [lambda f: f(ones(2, 2), ones(1, 1))], "vander": [lambda f: f(torch.arange(3.0))],
    "heaviside": [lambda f: f(torch.rand(3) - 0.5, ones(1))], "bernoulli": [lambda f: f(ones(5) / 2)],
    "poisson": [lambda f: f(ones(5) * 3)], "multinomial": [lambda f: f(ones(5), 3), lambda f: f(ones(2, 5), 9, True)],
    "binomial": [lambda f: f(ones(5) * 9, ones(5) / 2)], "combinations": [lambda f: f(torch.arange(4))],
    "tril": [lambda f: f(torch.rand(3, 3))], "triu": [lambda f: f(torch.rand(3, 3), 1)],
    "diag_embed": [lambda f: f(torch.rand(3))],
    **{
        f"{name}Tensor": [lambda f: f([1, 0]), lambda f: f([torch.arange(2)[1]]), lambda f: f(2, 3).zero_()]
        for name in ("Float", "Double", "Long", "", "Bool")
    },
    "dropout": [lambda f: f(ones(9), 0.5, True)], "alpha_dropout": [lambda f: f(ones(9), 0.5, True)],
    "rrelu": [lambda f: f(-ones(9), training=True), lambda f: f(-ones(9))],
}  # fmt: skip
#: Sparse and quantized tensors and files that are mapped are not recorded: real inside a context, too, or refused.
NOT_RECORDED = {"from_file", "empty_quantized", *(name for name in FACTORIES if name.startswith("sparse"))}


def test_every_factory_has_arguments() -> None:
    assert {*PUBLIC, *MORE} - {*FACTORIES} == set()
    assert all(FACTORIES[name] or name in NOT_RECORDED for name in FACTORIES)


@pytest.mark.parametrize("name", [name for name in (*PUBLIC, *MORE) if name not in NOT_RECORDED])
def test_factory(name) -> None:
    check(lambda: each(lambda call=call: call(getattr(torch, name)) for call in FACTORIES[name]))


NEW = {
    "new_empty": lambda t: t.new_empty(2, 3).zero_(),
    "new_empty_strided": lambda t: t.new_empty_strided((2, 3), (1, 2)).zero_(),
    "new_full": lambda t: t.new_full((2,), 3),
    "new_ones": lambda t: t.new_ones(2, dtype=torch.int64),
    "new_tensor": lambda t: [t.new_tensor([1, 2]), t.new_tensor([t[0], 2]), t.new_tensor(t)],
    "new_zeros": lambda t: [t.new_zeros(2), t.new_zeros(2, device="meta")],
    "new": lambda t: t.new([1, 2]),
}


@pytest.mark.parametrize("name", sorted({n for n in dir(torch.Tensor) if n.startswith("new")}))
def test_method_that_makes_a_tensor(name) -> None:
    check(lambda: NEW[name](torch.rand(3, dtype=torch.float64)))


RANDOM = {
    "bernoulli_": [(), (0.3,)], "cauchy_": [()], "exponential_": [()], "geometric_": [(0.5,)], "log_normal_": [()],
    "normal_": [()], "random_": [(), (9,), (2, 9)], "uniform_": [()],
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_random_method(name) -> None:
    check(lambda: [getattr(torch.ones(20), name)(*args) for args in RANDOM[name]])
    check(lambda: [getattr(torch.ones(4, 6).t()[1:4], name)(*args) for args in RANDOM[name]])


def test_quasi_random_engines() -> None:
    def draw(**how):
        engine = torch.quasirandom.SobolEngine(3, **how)
        return [engine.draw(5), engine.fast_forward(3).draw(2), engine.draw_base2(2), engine.reset().draw(1)]

    check(lambda: [draw(), draw(scramble=True), draw(scramble=True, seed=4)])


NUMPY = {
    "exp": lambda t: torch.as_tensor(np.exp(t)),
    "sqrt": lambda t: torch.as_tensor(np.sqrt(t) * 2),
    "maximum": lambda t: torch.as_tensor(np.maximum(t, 0.5)),
    "float32": lambda t: float(np.float32(t)),
    "array": lambda t: torch.from_numpy(np.array([t, t])),
    "stack": lambda t: torch.from_numpy(np.stack([t, t])),
    "linspace": lambda t: torch.as_tensor(np.linspace(0, t, 3)),
    "interp": lambda t: float(np.interp(0.5, [0, 1], [t, 2 * t])),
    "times": lambda t: t * np.float64(2),
    "sum of array": lambda t: float(np.sum(np.asarray(t))),
    "math": lambda t: math.exp(t),
    "int": lambda t: int(t * 10),
    "complex": lambda t: complex(t),
    "index": lambda t: [1, 2, 3][(t * 0).long()],
    "round": lambda t: round(t.item(), 3),
    "format": lambda t: f"{t:.3f}",
}


@pytest.mark.parametrize("name", NUMPY)
def test_numpy_and_python_functions_of_scalars(name) -> None:
    check(lambda: [NUMPY[name](torch.exp(torch.tensor(-1.0))), NUMPY[name](torch.rand(()))])


# --- distributions ----------------------------------------------------------------------------------------------------

D = distributions
P = {
    "Bernoulli": lambda a: D.Bernoulli(a),
    "Beta": lambda a: D.Beta(a, a + 1),
    "Binomial": lambda a: D.Binomial(5, a),
    "Categorical": lambda a: D.Categorical(a),
    "Cauchy": lambda a: D.Cauchy(a, a),
    "Chi2": lambda a: D.Chi2(a),
    "ContinuousBernoulli": lambda a: D.ContinuousBernoulli(a),
    "Dirichlet": lambda a: D.Dirichlet(a),
    "Exponential": lambda a: D.Exponential(a),
    "FisherSnedecor": lambda a: D.FisherSnedecor(a, a + 1),
    "Gamma": lambda a: D.Gamma(a, a),
    "GeneralizedPareto": lambda a: D.GeneralizedPareto(a, a, a),
    "Geometric": lambda a: D.Geometric(a),
    "Gumbel": lambda a: D.Gumbel(a, a),
    "HalfCauchy": lambda a: D.HalfCauchy(a),
    "HalfNormal": lambda a: D.HalfNormal(a),
    "Independent": lambda a: D.Independent(D.Normal(a, a), 1),
    "InverseGamma": lambda a: D.InverseGamma(a, a),
    "Kumaraswamy": lambda a: D.Kumaraswamy(a, a),
    "LKJCholesky": lambda a: D.LKJCholesky(3, a[0]),
    "Laplace": lambda a: D.Laplace(a, a),
    "LogNormal": lambda a: D.LogNormal(a, a),
    "LogisticNormal": lambda a: D.LogisticNormal(a, a),
    "LowRankMultivariateNormal": lambda a: D.LowRankMultivariateNormal(a, a.view(-1, 1), a),
    "MixtureSameFamily": lambda a: D.MixtureSameFamily(D.Categorical(a), D.Normal(a, a)),
    "Multinomial": lambda a: D.Multinomial(5, a),
    "MultivariateNormal": lambda a: D.MultivariateNormal(a, torch.eye(3) * 2),
    "NegativeBinomial": lambda a: D.NegativeBinomial(5, a),
    "Normal": lambda a: D.Normal(a, a),
    "OneHotCategorical": lambda a: D.OneHotCategorical(a),
    "OneHotCategoricalStraightThrough": lambda a: D.OneHotCategoricalStraightThrough(a),
    "Pareto": lambda a: D.Pareto(a, a),
    "Poisson": lambda a: D.Poisson(a),
    "RelaxedBernoulli": lambda a: D.RelaxedBernoulli(a[0], a),
    "RelaxedOneHotCategorical": lambda a: D.RelaxedOneHotCategorical(a[0], a),
    "StudentT": lambda a: D.StudentT(a + 2),
    "TransformedDistribution": lambda a: D.TransformedDistribution(D.Normal(a, a), [D.ExpTransform()]),
    "Uniform": lambda a: D.Uniform(a, a + 1),
    "VonMises": lambda a: D.VonMises(a, a),
    "Weibull": lambda a: D.Weibull(a, a),
    "Wishart": lambda a: D.Wishart(a[0] + 4, torch.eye(3)),
}
ALL = [
    name
    for name in distributions.__all__
    if isinstance(getattr(D, name), type) and issubclass(getattr(D, name), D.Distribution)
]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("Distribution", "ExponentialFamily")])
def test_distribution(name) -> None:
    def make():
        one = P[name](torch.tensor([0.5, 0.25, 0.25]) + torch.rand(1) / 100)
        sample = one.sample((2,))
        return [sample, one.log_prob(sample), one.rsample() if one.has_rsample else 0]

    check(make)


# --- layers -----------------------------------------------------------------------------------------------------------

X1, X2, X3 = (2, 4, 8), (2, 4, 8, 8), (2, 4, 6, 6, 6)
#: Arguments of the constructor and shapes of the inputs, by a name or the start of one with the number of dimensions.
LAYERS = {
    "AdaptiveAvgPool": (2,), "AdaptiveMaxPool": (2,), "AvgPool": (2,), "MaxPool": (2,), "LPPool": (2, 2),
    "FractionalMaxPool": (2, 3), "BatchNorm": (4,), "InstanceNorm": (4, 1e-5, 0.1, True, True), "Conv": (4, 3, 3),
    "ConvTranspose": (4, 3, 3), "LazyConv": (3, 3), "LazyConvTranspose": (3, 3), "LazyBatchNorm": (),
    "LazyInstanceNorm": (1e-5, 0.1, True, True), "CircularPad": (1,), "ConstantPad": (1, 2.0), "ReflectionPad": (1,),
    "ReplicationPad": (1,), "ZeroPad": (1,), "Dropout": (0.5,),
}  # fmt: skip
ints = lambda high, *shape: torch.randint(high, shape)  # noqa: E731
OTHERS = {
    "AdaptiveLogSoftmaxWithLoss": (lambda f: f(4, 10, [3, 6]), lambda: (torch.rand(5, 4), ints(10, 5))),
    "BCELoss": (lambda f: f(), lambda: (torch.rand(3), torch.rand(3))),
    "Bilinear": (lambda f: f(4, 4, 3), lambda: (torch.rand(2, 4), torch.rand(2, 4))),
    "CTCLoss": (
        lambda f: f(),
        lambda: (torch.rand(9, 2, 5).log_softmax(2), ints(4, 2, 3) + 1, torch.tensor([9, 9]), torch.tensor([3, 3])),
    ),
    "ChannelShuffle": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "CosineEmbeddingLoss": (lambda f: f(), lambda: (torch.rand(3, 4), torch.rand(3, 4), torch.ones(3))),
    "CrossEntropyLoss": (lambda f: f(weight=torch.rand(4)), lambda: (torch.rand(3, 4), ints(4, 3))),
    "LinearCrossEntropyLoss": (lambda f: f(4, 5), lambda: (torch.rand(3, 4), ints(5, 3))),
    "CrossMapLRN2d": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "Embedding": (lambda f: f(9, 4, padding_idx=1, max_norm=1.0), lambda: (ints(9, 2, 3),)),
    "EmbeddingBag": (lambda f: f(9, 4), lambda: (ints(9, 2, 3),)),
    "Fold": (lambda f: f((4, 4), 2), lambda: (torch.rand(2, 8, 9),)),
    "GRU": (lambda f: f(4, 3, 2, bidirectional=True), lambda: (torch.rand(5, 2, 4),)),
    "GRUCell": (lambda f: f(4, 3), lambda: (torch.rand(2, 4),)),
    "GaussianNLLLoss": (lambda f: f(), lambda: (torch.rand(3), torch.rand(3), torch.rand(3))),
    "GroupNorm": (lambda f: f(2, 4), lambda: (torch.rand(X2),)),
    "HingeEmbeddingLoss": (lambda f: f(), lambda: (torch.rand(3), torch.ones(3))),
    "LSTM": (lambda f: f(4, 3, 2, proj_size=2, dropout=0.5), lambda: (torch.rand(5, 2, 4),)),
    "LSTMCell": (lambda f: f(4, 3), lambda: (torch.rand(2, 4),)),
    "LayerNorm": (lambda f: f(8), lambda: (torch.rand(X1),)),
    "LazyLinear": (lambda f: f(3), lambda: (torch.rand(2, 4),)),
    "Linear": (lambda f: f(8, 3), lambda: (torch.rand(X1),)),
    "LocalResponseNorm": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "MarginRankingLoss": (lambda f: f(), lambda: (torch.rand(3), torch.rand(3), torch.ones(3))),
    **{
        f"MaxUnpool{n}d": (
            lambda f: f(2),
            lambda n=n: getattr(nn, f"MaxPool{n}d")(2, return_indices=True)(torch.rand((X1, X2, X3)[n - 1])),
        )
        for n in (1, 2, 3)
    },
    "MultiLabelMarginLoss": (lambda f: f(), lambda: (torch.rand(2, 4), ints(4, 2, 4))),
    "MultiLabelSoftMarginLoss": (lambda f: f(), lambda: (torch.rand(2, 4), ints(2, 2, 4).float())),
    "MultiMarginLoss": (lambda f: f(), lambda: (torch.rand(2, 4), ints(4, 2))),
    "MultiheadAttention": (lambda f: f(8, 2, 0.1), lambda: (torch.rand(X1),) * 3),
    "NLLLoss": (lambda f: f(), lambda: (torch.rand(2, 4).log(), ints(4, 2))),
    "NLLLoss2d": (lambda f: f(), lambda: (torch.rand(2, 4, 3, 3).log(), ints(4, 2, 3, 3))),
    "PReLU": (lambda f: f(4), lambda: (torch.randn(X1),)),
    "PixelShuffle": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "PixelUnshuffle": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "RMSNorm": (lambda f: f(8), lambda: (torch.rand(X1),)),
    "RNN": (lambda f: f(4, 3), lambda: (torch.rand(5, 2, 4),)),
    "RNNCell": (lambda f: f(4, 3), lambda: (torch.rand(2, 4),)),
    "SoftMarginLoss": (lambda f: f(), lambda: (torch.rand(3), torch.ones(3))),
    "Threshold": (lambda f: f(0.5, 0.1), lambda: (torch.rand(3),)),
    "Transformer": (lambda f: f(8, 2, 1, 1, 16), lambda: (torch.rand(X1), torch.rand(X1))),
    "TransformerDecoder": (
        lambda f: f(nn.TransformerDecoderLayer(8, 2, 16), 2), lambda: (torch.rand(X1), torch.rand(X1)),
    ),
    "TransformerDecoderLayer": (lambda f: f(8, 2, 16), lambda: (torch.rand(X1), torch.rand(X1))),
    "TransformerEncoder": (lambda f: f(nn.TransformerEncoderLayer(8, 2, 16), 2), lambda: (torch.rand(X1),)),
    "TransformerEncoderLayer": (lambda f: f(8, 2, 16), lambda: (torch.rand(X1),)),
    "TripletMarginLoss": (lambda f: f(), lambda: (torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 4))),
    "TripletMarginWithDistanceLoss": (lambda f: f(), lambda: (torch.rand(3, 4), torch.rand(3, 4), torch.rand(3, 4))),
    "Unflatten": (lambda f: f(1, (2, 2)), lambda: (torch.rand(X1),)),
    "Unfold": (lambda f: f(2), lambda: (torch.rand(X2),)),
    "Upsample": (lambda f: f(scale_factor=2), lambda: (torch.rand(X2),)),
    "UpsamplingBilinear2d": (lambda f: f(scale_factor=2), lambda: (torch.rand(X2),)),
    "UpsamplingNearest2d": (lambda f: f(scale_factor=2), lambda: (torch.rand(X2),)),
    "Softmax2d": (lambda f: f(), lambda: (torch.rand(X2),)),
    "FeatureAlphaDropout": (lambda f: f(), lambda: (torch.rand(X2),)),
    "GLU": (lambda f: f(), lambda: (torch.rand(X1),)),
    **dict.fromkeys(
        ("BCEWithLogitsLoss", "CosineSimilarity", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "PairwiseDistance",
         "PoissonNLLLoss", "SmoothL1Loss"),
        (lambda f: f(), lambda: (torch.rand(3, 4), torch.rand(3, 4))),
    ),
}  # fmt: skip
#: Containers, base classes, options, and a layer that computes on GPUs alone.
NO_LAYERS = {
    "Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "Sequential", "RNNBase",
    "RNNCellBase", "LinearCrossEntropyOptions", "SyncBatchNorm",
}  # fmt: skip


def layer(name: str):
    cls = getattr(nn, name)
    if name in OTHERS:
        make, inputs = OTHERS[name]
        return make(cls), inputs()
    for start, args in LAYERS.items():
        if name[:-2] == start and name[-2:] in ("1d", "2d", "3d"):
            return cls(*args), (torch.rand((X1, X2, X3)[int(name[-2]) - 1]),)
    return cls(), (torch.randn(X1),)  # activations and their like


@pytest.mark.parametrize("name", [name for name in nn.modules.__all__ if name not in NO_LAYERS])
def test_layer_with_a_forward_in_its_constructor(name) -> None:
    def one_of(training):
        one, inputs = layer(name)
        one.train(training)
        with torch.no_grad():
            result = one(*inputs)
        found = [t for t in flat(list(result) if isinstance(result, (tuple, list)) else result) if t is not None]
        return [found, float(found[0].float().mean()), list(one.parameters()), list(one.buffers())]

    def make():
        return [one_of(True), one_of(False)]

    assert isinstance(outcome(make, False), list)  # the arguments are right
    check(make)


def test_numbers_put_on_meta_are_refused() -> None:
    """`torch.tensor(..., device="meta")` is no operation that a context sees: not kept on meta, but refused."""
    with fastinit.deferred():
        module = torch.nn.Module()
        module.made = torch.tensor([1.0, 2.0], device="meta")
    with pytest.raises(RuntimeError, match="'made': on the meta device"):
        fastinit.materialize(module)
    assert module.made.is_meta
