"""Distillation terms: properties of all registered ones, each formula against an oracle, and every refusal."""

import re
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import BertConfig, set_seed

from hf_xtc.distillation.terms import TERMS, LabelsTerm, LogitsTerm, soft_cross_entropy, token_mask
from hf_xtc.errors import XTCError
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.tasks.pooling import pool

LENGTHS = (7, 2, 4, 1)  # real tokens of each row; no two halves hold equally many
TOKENS, WIDTH, ATTENTION_HEADS, CLASSES, VOCABULARY, CHOICES = 9, 5, 3, 4, 11, 2
LAYER_MAP = LayerMap((0, 2), 4)
SPANS = ("start_logits", "end_logits")
RELATIONAL = {"similarities"}  # terms that compare the examples of a batch
OWN_FLOOR = {"logits", "labels"}  # terms that are not zero where student = teacher

# Head -> its outputs and their shapes; -1 is the tokens.
HEADS = {
    "sequence": {"logits": (CLASSES,)},
    "regression": {"logits": (1,)},
    "token": {"logits": (-1, CLASSES)},
    "token_regression": {"logits": (-1, 1)},
    "masked_lm": {"logits": (-1, VOCABULARY)},
    "span": {"start_logits": (-1,), "end_logits": (-1,)},
    "choice": {"logits": (CHOICES,)},
    "pretraining": {"prediction_logits": (-1, VOCABULARY), "seq_relationship_logits": (2,)},
}
# Every registered term on a sequence classifier, and the term that reads the head on all the others.
CASES = [(term, "sequence") for term in TERMS] + [("logits", head) for head in HEADS if head != "sequence"]
contract = pytest.mark.parametrize("term, head", CASES, ids=[f"{term}-{head}" for term, head in CASES])


def refuses(text):
    return pytest.raises(XTCError, match=f"^{re.escape(text)}$")


@dataclass
class Case:
    """The inputs of a term; the student's tensors are leaves of the graph."""

    student: dict
    teacher: dict
    batch: dict

    def loss(self, term, layer_map=LAYER_MAP):
        found = term(self.student, self.teacher, self.batch, layer_map)
        assert found.shape == ()
        assert found.dtype == torch.float32
        return found

    def loss_and_gradient(self, term, layer_map=LAYER_MAP):
        loss = self.loss(term, layer_map)
        leaves = dict(tensors(self.student))
        gradients = torch.autograd.grad(loss, leaves.values(), allow_unused=True, retain_graph=True)
        zero = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves.values(), gradients, strict=True)]
        return loss.detach(), dict(zip(leaves, zero, strict=True))


def tensors(outputs):
    """Path and tensor of each output except the loss."""
    for key, value in outputs.items():
        if key != "loss":
            yield from ((f"{key}.{i}", x) for i, x in enumerate(value)) if isinstance(value, tuple) else [(key, value)]


def mapped(outputs, function):
    """The outputs with `function(key, tensor)` for each tensor, made leaves; the head's loss follows its logits."""
    new = {}
    for key, value in outputs.items():
        if key != "loss":
            new[key] = (
                tuple(leaf(function(key, x)) for x in value)
                if isinstance(value, tuple)
                else leaf(function(key, value))
            )
    if "logits" in new:
        new["loss"] = new["logits"].float().square().flatten(1).mean()  # some mean over examples
    return new


def leaf(tensor):
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def outputs(head, layers, rows, generator):
    """Random outputs of a model; hidden states and attention scores have `rows * choices` rows."""
    flat = rows * (CHOICES if head == "choice" else 1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    made = {k: normal(rows, *(TOKENS if n == -1 else n for n in shape)) for k, shape in HEADS[head].items()}
    made["hidden_states"] = tuple(normal(flat, TOKENS, WIDTH) for _ in range(layers + 1))
    made["attentions"] = tuple(normal(flat, ATTENTION_HEADS, TOKENS, TOKENS) for _ in range(layers))
    return made


def make_case(head="sequence", seed=0, same=False):
    """A batch of `LENGTHS`; with `same` the teacher's outputs are the student's."""
    generator = torch.Generator().manual_seed(seed)
    rows = len(LENGTHS)
    student = outputs(head, 4 if same else 2, rows, generator)
    teacher = student if same else outputs(head, 4, rows, generator)
    lengths = torch.tensor(LENGTHS)
    if head == "choice":
        lengths = torch.stack([lengths, lengths.flip(0)], 1)
    mask = (torch.arange(TOKENS) < lengths.unsqueeze(-1)).long()
    batch = {"attention_mask": mask}
    if head in ("token", "token_regression", "masked_lm", "pretraining"):
        batch["labels"] = torch.where(mask == 1, 1, -100)
        batch["labels"][0, 1:4] = -100  # sub-words, or tokens that were not masked
    mapped_student = mapped({k: v for k, v in student.items()}, lambda key, x: x.clone().requires_grad_())
    return Case(mapped_student, mapped(teacher, lambda key, x: x), batch)


def kept(key, tensor, mask):
    """A boolean mask, which broadcasts to the tensor, of the values that belong to real tokens."""
    mask = mask.reshape(-1, mask.shape[-1]).bool()
    if key == "attentions":
        return (mask.unsqueeze(1) & mask.unsqueeze(2)).unsqueeze(1)
    if key in SPANS:
        return mask
    return mask.unsqueeze(-1) if tensor.dim() == 3 else torch.ones(1, 1, dtype=torch.bool)


def token_axes(key, tensor):
    if key == "attentions":
        return (2, 3)
    return (1,) if key in SPANS or tensor.dim() == 3 else ()


def repadded(case, columns):
    """The same case with noise at all padding, and with this many more columns of padding."""
    generator = torch.Generator().manual_seed(7)
    mask = F.pad(case.batch["attention_mask"], (0, columns))
    batch = {"attention_mask": mask}
    if "labels" in case.batch:
        batch["labels"] = F.pad(case.batch["labels"], (0, columns), value=-100)

    def renew(key, tensor):
        grown = tensor.detach()
        for axis in token_axes(key, tensor):
            extra = list(grown.shape)
            extra[axis] = columns
            grown = torch.cat([grown, torch.zeros(extra)], axis)
        noise = 100 * torch.randn(grown.shape, generator=generator)
        return torch.where(kept(key, grown, mask), grown, noise).requires_grad_(tensor.requires_grad)

    return Case(mapped(case.student, renew), mapped(case.teacher, renew), batch)


def rows_of(case, part):
    def cut(key, tensor):
        rows = len(case.batch["attention_mask"])
        return tensor.reshape(rows, -1, *tensor.shape[1:])[part].flatten(0, 1)

    batch = {key: value[part] for key, value in case.batch.items()}
    return Case(mapped(case.student, cut), mapped(case.teacher, cut), batch)


# The oracles: the plainest code for each formula, one example at a time.


def oracle_hidden_states(case, layer_map):
    mask = case.batch["attention_mask"].reshape(-1, TOKENS)
    total = 0
    for i, j in enumerate((0, *(layer + 1 for layer in layer_map.layers))):
        ours, theirs = case.student["hidden_states"][i], case.teacher["hidden_states"][j]
        errors = [F.mse_loss(ours[b, :n], theirs[b, :n]) for b, n in enumerate(mask.sum(1).tolist())]
        total = total + sum(errors) / len(errors)
    return total


def oracle_attention_scores(case, layer_map):
    mask = case.batch["attention_mask"].reshape(-1, TOKENS)
    total = 0
    for i, j in enumerate(layer_map.layers):
        ours, theirs = case.student["attentions"][i], case.teacher["attentions"][j]
        errors = [F.mse_loss(ours[b, :, :n, :n], theirs[b, :, :n, :n]) for b, n in enumerate(mask.sum(1).tolist())]
        total = total + sum(errors) / len(errors)
    return total


def cross_entropy(ours, theirs):
    """Torch's cross entropy with probabilities as targets, of one distribution or the mean of several."""
    return F.cross_entropy(ours.reshape(-1, ours.shape[-1]), theirs.softmax(-1).reshape(-1, ours.shape[-1]))


def oracle_logits(case, layer_map):
    total = 0
    for key in (key for key in case.student if key.endswith("logits")):
        ours, theirs = case.student[key], case.teacher[key]
        real = case.batch["attention_mask"].bool()
        errors = []
        for b in range(len(ours)):
            x, y = ours[b], theirs[b]
            if key in SPANS:
                x, y = x[real[b]], y[real[b]]
            elif ours.dim() == 3:
                x, y = (z[real[b] & (case.batch["labels"][b] != -100)] for z in (x, y))
            if x.numel():
                errors.append(F.mse_loss(x, y) if ours.shape[-1] == 1 else cross_entropy(x, y))
        total = total + sum(errors) / len(ours)
    return total


def oracle_labels(case, layer_map):
    return case.student["loss"]


def oracle_vectors(case, outputs):
    """The mean of each example's last hidden states, of length 1."""
    mask = case.batch["attention_mask"].reshape(-1, TOKENS).sum(1).tolist()
    means = [outputs["hidden_states"][-1][b, :n].mean(0) for b, n in enumerate(mask)]
    return [mean / mean.norm() for mean in means]


def oracle_embeddings(case, layer_map):
    pairs = zip(oracle_vectors(case, case.student), oracle_vectors(case, case.teacher), strict=True)
    return sum(1 - (ours * theirs).sum() for ours, theirs in pairs) / len(LENGTHS)


def oracle_similarities(case, layer_map):
    ours, theirs = oracle_vectors(case, case.student), oracle_vectors(case, case.teacher)
    pairs = [(i, j) for i in range(len(ours)) for j in range(len(ours)) if i != j]
    return sum((ours[i] @ ours[j] - theirs[i] @ theirs[j]) ** 2 for i, j in pairs) / len(pairs)


ORACLES = {
    "embeddings": oracle_embeddings,
    "similarities": oracle_similarities,
    "hidden_states": oracle_hidden_states,
    "attention_scores": oracle_attention_scores,
    "logits": oracle_logits,
    "labels": oracle_labels,
}


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


@contract
def test_value_and_gradient_are_those_of_the_formula(term, head):
    case = make_case(head)
    loss, gradient = case.loss_and_gradient(TERMS[term]())
    expected, expected_gradient = Case(case.student, case.teacher, case.batch).loss_and_gradient(
        lambda student, teacher, batch, layer_map: ORACLES[term](case, layer_map)
    )
    assert expected > 0
    assert_same(loss, expected)
    assert any(g.abs().max() > 1e-3 for g in gradient.values())
    for path in gradient:
        assert_same(gradient[path], expected_gradient[path], msg=path)


@pytest.mark.parametrize("term", [name for name in TERMS if name not in OWN_FLOOR])
def test_zero_where_student_equals_teacher(term):
    loss, gradient = make_case(same=True).loss_and_gradient(TERMS[term](), LayerMap.skip(4, 4))
    assert loss == 0
    assert all(g.abs().max() == 0 for g in gradient.values())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("head", [head for head in HEADS if "regression" not in head])
def test_logits_loss_is_the_teachers_entropy_where_student_equals_teacher(head, temperature):
    case = make_case(head, same=True)
    loss, gradient = case.loss_and_gradient(LogitsTerm(temperature), LayerMap.skip(4, 4))
    other = make_case(head, same=True)
    other.student = mapped(other.student, lambda key, x: x + 0.1 * torch.randn_like(x))
    assert 0 < loss < other.loss(LogitsTerm(temperature))
    # float32 sums of probabilities are 1 to 1e-7
    assert all(g.abs().max() < 1e-6 * temperature for g in gradient.values())
    if head == "sequence":
        entropy = torch.distributions.Categorical(logits=case.teacher["logits"] / temperature).entropy()
        assert_same(loss, entropy.mean() * temperature**2)


@pytest.mark.parametrize("head", ["regression", "token_regression"])
def test_one_output_has_zero_error_where_student_equals_teacher(head):
    loss, gradient = make_case(head, same=True).loss_and_gradient(LogitsTerm(), LayerMap.skip(4, 4))
    assert loss == 0
    assert all(g.abs().max() == 0 for g in gradient.values())


@pytest.mark.parametrize("columns", [0, 1, 6], ids=["noise", "one_column", "six_columns"])
@contract
def test_padding_does_not_matter(term, head, columns):
    case = make_case(head)
    noisy = repadded(case, columns)
    assert sum(x.numel() for _, x in tensors(noisy.student)) > 0
    loss, gradient = case.loss_and_gradient(TERMS[term]())
    noisy_loss, noisy_gradient = noisy.loss_and_gradient(TERMS[term]())
    assert_same(noisy_loss, loss)
    for path, expected in gradient.items():
        key = path.partition(".")[0]
        found = noisy_gradient[path]
        real = kept(key, found, noisy.batch["attention_mask"])
        assert not (found * ~real).any(), path
        for axis in token_axes(key, found):
            found = found.narrow(axis, 0, TOKENS)
        assert_same(found, expected, msg=path)


@pytest.mark.parametrize("term, head", [case for case in CASES if case[0] not in RELATIONAL])
def test_batch_split_does_not_matter(term, head):
    case = make_case(head)
    whole, gradient = case.loss_and_gradient(TERMS[term]())
    halves = [rows_of(case, slice(0, 2)).loss_and_gradient(TERMS[term]())]
    halves.append(rows_of(case, slice(2, 4)).loss_and_gradient(TERMS[term]()))
    assert halves[0][0] != halves[1][0]
    assert_same((halves[0][0] + halves[1][0]) / 2, whole)
    for path, expected in gradient.items():
        assert_same(torch.cat([half[1][path] for half in halves]) / 2, expected, msg=path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@contract
def test_finite_in_half_precision(term, head, dtype):
    # Squares and sums of these are beyond float16; the loss is float32 and the gradient comes back in the dtype.
    case = make_case(head)
    case.student = mapped(case.student, lambda key, x: (300 * x).to(dtype))
    case.teacher = mapped(case.teacher, lambda key, x: (300 * x).to(dtype))
    loss, gradient = case.loss_and_gradient(TERMS[term]())
    assert torch.isfinite(loss)
    for path, found in gradient.items():
        assert found.dtype == dtype
        assert torch.isfinite(found).all(), path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@contract
def test_autocast_changes_nothing(term, head, dtype):
    """Sums are in float32; in float16 these would overflow, and bfloat16 would keep three digits."""
    case = make_case(head)
    case.student = mapped(case.student, lambda key, x: 300 * x)
    expected, _ = case.loss_and_gradient(TERMS[term]())
    with torch.autocast("cpu", dtype):
        found, _ = case.loss_and_gradient(TERMS[term]())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@contract
def test_student_and_teacher_may_differ_in_dtype(term, head):
    case = make_case(head)
    expected = case.loss(TERMS[term]())
    case.teacher = mapped(case.teacher, lambda key, x: x.bfloat16())
    assert_same(case.loss(TERMS[term]()), expected, rtol=0.02, atol=0.02)  # bfloat16 has 8 bits


@contract
def test_teacher_gets_no_gradient(term, head):
    case = make_case(head)
    case.teacher = mapped(case.teacher, lambda key, x: x.requires_grad_())
    case.loss(TERMS[term]()).backward()
    assert all(x.grad is None for _, x in tensors(case.teacher))


@contract
def test_inputs_are_left_as_they_are(term, head):
    case, fresh = make_case(head), make_case(head)
    case.loss_and_gradient(TERMS[term]())
    for ours, theirs in ((case.student, fresh.student), (case.teacher, fresh.teacher)):
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(tensors(ours), tensors(theirs), strict=True))
    assert all(torch.equal(case.batch[key], fresh.batch[key]) for key in fresh.batch)


@pytest.mark.parametrize("term", ["hidden_states", "attention_scores"])
def test_without_a_mask_all_tokens_count(term):
    case = make_case()
    ones = Case(case.student, case.teacher, {"attention_mask": torch.ones(4, TOKENS)})
    bare = Case(case.student, case.teacher, {})
    assert torch.equal(bare.loss(TERMS[term]()), ones.loss(TERMS[term]()))
    assert bare.loss(TERMS[term]()) != case.loss(TERMS[term]())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("term", ["embeddings", "similarities"])
def test_pooled_terms_read_the_last_states_and_pool_as_told(term, pooling):
    case = make_case()
    assert read_indices(term, "hidden_states", LAYER_MAP, pooling=pooling) == [4]
    first = (
        tuple(x[:, :1] for x in case.student["hidden_states"]),
        tuple(x[:, :1] for x in case.teacher["hidden_states"]),
    )
    alone = Case({"hidden_states": first[0]}, {"hidden_states": first[1]}, {})
    same = torch.equal(alone.loss(TERMS[term](pooling)), case.loss(TERMS[term](pooling)))
    assert same == (pooling == "cls")


def test_padding_on_the_left_leaves_the_first_real_token():
    states, mask = torch.randn(2, 3, 4), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert torch.equal(pool(states, mask, "cls"), torch.stack([states[0, 1], states[1, 0]]))
    assert_same(pool(states, mask, "mean"), torch.stack([states[0, 1:].mean(0), states[1].mean(0)]))
    with refuses("pooling='max' does not exist. Use one of: mean, cls."):
        pool(states, mask, "max")


def test_one_example_has_no_similarities():
    case = rows_of(make_case(), slice(0, 1))
    loss, gradient = case.loss_and_gradient(TERMS["similarities"]())
    assert loss == 0
    assert all(g.abs().max() == 0 for g in gradient.values())


@pytest.mark.parametrize("term", ["embeddings", "similarities"])
def test_embeddings_of_another_width(term):
    case = make_case()
    case.teacher["hidden_states"] = tuple(torch.zeros(4, TOKENS, 7) for _ in range(5))
    with refuses(
        "Student and teacher give embeddings of 5 and 7 features. Use a student of the teacher's width, or drop the "
        f"term {term!r}."
    ):
        case.loss(TERMS[term]())


def test_gradient_scales_with_the_weight_of_the_loss():
    case = make_case()
    _, gradient = case.loss_and_gradient(TERMS["hidden_states"]())
    _, tripled = case.loss_and_gradient(lambda *args: 3 * TERMS["hidden_states"]()(*args))
    assert_same(tripled["hidden_states.1"], 3 * gradient["hidden_states.1"])


def read_indices(term, key, layer_map, **options):
    """Indices of the teacher's tensors that the loss depends on."""
    case, made = make_case(), TERMS[term](**options)
    loss = case.loss(made, layer_map)
    found = []
    for i in range(len(case.teacher[key])):
        changed = tuple(x + 1 if i == j else x for j, x in enumerate(case.teacher[key]))
        if Case(case.student, {**case.teacher, key: changed}, case.batch).loss(made, layer_map) != loss:
            found.append(i)
    return found


@pytest.mark.parametrize(
    "layer_map, states, scores",
    [
        (LayerMap((0, 2), 4), [0, 1, 3], [0, 2]),
        (LayerMap((1, 3), 4), [0, 2, 4], [1, 3]),
        (LayerMap((2, 3), 4, shifted=True), [1, 3, 4], [2, 3]),
    ],
    ids=["first", "every_second", "shifted"],
)
def test_layer_map_determines_the_layers_read(layer_map, states, scores):
    assert read_indices("hidden_states", "hidden_states", layer_map) == states
    assert read_indices("attention_scores", "attentions", layer_map) == scores


def test_layers_are_paired_in_order():
    case = make_case()
    states, scores = case.student["hidden_states"], case.student["attentions"]
    blank = torch.zeros(())
    teacher = {
        "hidden_states": (states[0], states[1], blank, states[2], blank),
        "attentions": (scores[0], blank, scores[1], blank),
    }
    for term in ("hidden_states", "attention_scores"):
        assert TERMS[term]()(case.student, teacher, case.batch, LayerMap((0, 2), 4)) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_cross_entropy_is_kl_divergence_plus_entropy(temperature):
    case = make_case()
    ours, theirs = case.student["logits"], case.teacher["logits"]
    target = F.log_softmax(theirs / temperature, -1)
    divergence = F.kl_div(F.log_softmax(ours / temperature, -1), target, log_target=True, reduction="batchmean")
    entropy = -(target.exp() * target).sum(-1).mean()
    assert_same(soft_cross_entropy(ours, theirs, temperature).mean(), temperature**2 * (divergence + entropy))
    assert_same(case.loss(LogitsTerm(temperature)), temperature**2 * (divergence + entropy))


def test_temperature_does_not_change_the_size_of_the_gradient():
    # T**2 keeps the gradient of close logits as large as at T = 1 (Hinton et al. 2015, section 2.1).
    ours, theirs = torch.tensor([[0.01, -0.01]], requires_grad=True), torch.tensor([[-0.02, 0.02]])
    norms = [torch.autograd.grad(soft_cross_entropy(ours, theirs, t).sum(), ours)[0].norm() for t in (1.0, 10.0)]
    assert_same(norms[0], norms[1], rtol=1e-3)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with refuses(f"temperature={temperature} must be positive."):
        LogitsTerm(temperature)


def test_regression_is_the_mean_squared_error():
    case = make_case("regression")
    expected = F.mse_loss(case.student["logits"], case.teacher["logits"])
    assert_same(case.loss(LogitsTerm()), expected)
    assert_same(case.loss(LogitsTerm(temperature=5.0)), expected)
    several = make_case("sequence")
    expected = F.mse_loss(several.student["logits"], several.teacher["logits"])
    assert_same(several.loss(LogitsTerm(regression=True)), expected)
    assert several.loss(LogitsTerm()) != expected


@pytest.mark.parametrize("head", ["regression", "token_regression"])
def test_one_logit_is_never_a_distribution(head):
    # Soft cross entropy of one class is 0 with gradient 0: the student would learn nothing.
    case = make_case(head)
    loss, gradient = case.loss_and_gradient(LogitsTerm())
    assert loss > 0.1
    assert gradient["logits"].abs().max() > 0.1 / TOKENS


def test_tokens_without_a_label_do_not_count():
    case = make_case("token")
    loss = case.loss(LogitsTerm())
    changed = case.student["logits"].detach().clone()
    changed[0, 1:4] += 5
    assert torch.equal(Case({"logits": changed}, case.teacher, case.batch).loss(LogitsTerm()), loss)
    unlabelled = {"attention_mask": case.batch["attention_mask"]}
    everything = Case({"logits": changed}, case.teacher, unlabelled).loss(LogitsTerm())
    assert everything != loss
    of_rows = {**unlabelled, "labels": torch.full((len(LENGTHS), 1), -100)}
    assert torch.equal(Case({"logits": changed}, case.teacher, of_rows).loss(LogitsTerm()), everything)
    errors = soft_cross_entropy(changed, case.teacher["logits"])
    assert_same(everything, sum(errors[b, :n].mean() for b, n in enumerate(LENGTHS)) / len(LENGTHS))


def test_example_without_any_label_counts_as_zero():
    case = make_case("masked_lm")
    case.batch["labels"][1] = -100
    loss, gradient = case.loss_and_gradient(LogitsTerm())
    assert torch.isfinite(loss)
    assert not gradient["logits"][1].any()


def test_sequence_labels_do_not_mask_tokens():
    case = make_case("sequence")
    loss = case.loss(LogitsTerm())
    case.batch["labels"] = torch.tensor([0, -100, 1, 2])
    assert torch.equal(case.loss(LogitsTerm()), loss)


def test_labels_term_is_the_heads_loss():
    loss = LabelsTerm()({"loss": torch.tensor(2.0, dtype=torch.float16)}, None, {}, LAYER_MAP)
    assert loss == 2.0
    assert loss.dtype == torch.float32
    with refuses("The term 'labels' needs labels in every batch. Add a column 'labels', or drop the term."):
        LabelsTerm()({"logits": torch.zeros(1, 2)}, None, {}, LAYER_MAP)


def test_token_mask_counts_choices_as_rows():
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0]]])
    assert token_mask({"attention_mask": mask}, torch.zeros(2, 3, 5)).tolist() == [[1, 1, 0], [1, 0, 0]]


def test_outputs_needed_by_each_term():
    assert {name: (set(TERMS[name].needs), TERMS[name].intermediate) for name in ORACLES} == {
        "logits": (set(), False),
        "labels": (set(), False),
        "hidden_states": ({"hidden_states"}, True),
        "attention_scores": ({"attentions"}, True),
        "embeddings": ({"hidden_states"}, False),
        "similarities": ({"hidden_states"}, False),
    }
    assert set(ORACLES) == set(TERMS), "a new term needs an oracle"


def test_heads_that_differ():
    case = make_case()
    case.teacher["logits"] = torch.zeros(4, 7)
    with refuses(
        "Student and teacher give logits of shapes [4, 4] and [4, 7]. "
        "Use a teacher with the student's head, or drop the term 'logits'."
    ):
        case.loss(LogitsTerm())


def test_heads_with_nothing_in_common():
    case = make_case("span")
    case.teacher = make_case("sequence").teacher
    with refuses("Student and teacher have no logits in common; drop the term 'logits'."):
        case.loss(LogitsTerm())


def test_hidden_states_of_other_width():
    case = make_case()
    case.teacher["hidden_states"] = tuple(torch.zeros(4, TOKENS, 8) for _ in range(5))
    with refuses(
        f"Student states are {TOKENS} tokens of width 5, the teacher's {TOKENS} tokens of width 8. "
        "Give the term 'hidden_states' a projection, or drop it."
    ):
        case.loss(TERMS["hidden_states"]())


def test_projection_fits_the_widths_and_learns():
    case = make_case()
    teacher = tuple(torch.cat([x, x[..., :3]], -1) for x in case.teacher["hidden_states"])
    case.teacher["hidden_states"] = teacher
    projection = torch.nn.Linear(WIDTH, 8, bias=False)
    loss = case.loss(TERMS["hidden_states"](projection))
    case.student["hidden_states"] = tuple(x @ projection.weight.T for x in case.student["hidden_states"])
    assert_same(loss, oracle_hidden_states(case, LAYER_MAP))
    (gradient,) = torch.autograd.grad(loss, projection.weight)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_missing_attentions_are_refused(who):
    # sdpa answers output_attentions=True with an empty tuple.
    case = make_case()
    getattr(case, who)["attentions"] = ()
    counts = (0, 4) if who == "student" else (2, 0)
    with refuses(
        f"Got attention scores of {counts[0]} student and {counts[1]} teacher layers instead of 2 and 4: the "
        "attention implementation returns none. Use set_attn_implementation('xtc_scores') on both, as XTCTrainer "
        "does, or drop the term 'attention_scores'."
    ):
        case.loss(TERMS["attention_scores"]())


def test_attention_heads_that_differ():
    case = make_case()
    case.teacher["attentions"] = tuple(torch.zeros(4, 6, TOKENS, TOKENS) for _ in range(4))
    with refuses(
        f"Student layers have 3 attention heads over {TOKENS} keys, the teacher's 6 attention heads over {TOKENS} "
        "keys. "
        "Drop the term 'attention_scores'."
    ):
        case.loss(TERMS["attention_scores"]())


@pytest.mark.parametrize(
    "name",
    [
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
        "ForMaskedLM",
        "ForMultipleChoice",
        "ForNextSentencePrediction",
        "ForPreTraining",
    ],
)
def test_outputs_of_bert_heads(name, tiny_batch):
    """With the outputs of BERT's heads, padding columns change no term, and no output is missing."""
    set_seed(0)
    config = BertConfig(
        vocab_size=101, hidden_size=36, num_hidden_layers=2, num_attention_heads=4, intermediate_size=50
    )
    student, teacher = (getattr(transformers, f"Bert{name}")(config).eval() for _ in range(2))
    for model in (student, teacher):
        model.set_attn_implementation("xtc_scores")
    wider = {key: F.pad(value, (0, 4)) for key, value in tiny_batch.items()}
    losses = []
    for batch in (tiny_batch, wider):
        if name == "ForMultipleChoice":
            batch = {key: torch.stack([value, value.flip(0)], 1) for key, value in batch.items()}
        ours, theirs = (m(**batch, output_hidden_states=True, output_attentions=True) for m in (student, teacher))
        terms = {key: TERMS[key]() for key in ("logits", "hidden_states", "attention_scores")}
        losses.append({key: term(ours, theirs, batch, LayerMap.skip(2, 2)) for key, term in terms.items()})
    for key, loss in losses[0].items():
        assert loss > 1e-6
        assert_same(losses[1][key], loss, rtol=1e-4)
