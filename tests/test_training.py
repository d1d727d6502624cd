"""The shallow predictor: against plain PyTorch, side by side, and when it stops."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from gram_hear.errors import TaskError
from gram_hear.evaluation.predict.grid import Setting
from gram_hear.evaluation.predict.predictors import Examples, Objective, Predictors, Rows
from gram_hear.evaluation.predict.training import (
    Trainer,
    ValidationScore,
    bit_source,
    side_by_side,
    train,
)

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KINDS = ("multiclass", "multilabel", "localisation")
SETTING = Setting(
    batch_size=16,
    check_val_every_n_epoch=1,
    dropout=0.0,
    hidden_dim=8,
    hidden_layers=1,
    initialization="xavier_uniform_",
    lr=1e-2,
    max_epochs=4,
    patience=20,
)


def make_examples(rows, kind="multiclass", inputs=5, seed=0):
    """Features whose first columns say what the target is, and noise; three outputs."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, inputs, generator=generator)
    signal = features[:, :3] + 0.5 * torch.randn(rows, 3, generator=generator)
    targets = {
        "multiclass": F.one_hot(signal.argmax(1), 3).float(),
        "multilabel": (signal > 0.3).float(),
        "localisation": F.normalize(signal, dim=1),
    }[kind]
    return Examples(Rows([features]), targets)


def make_trainer(settings, kind="multiclass", inputs=5, seeds=None):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or range(len(settings))]
    predictors = Predictors.draw(settings, inputs, 3, generators)
    sources = [bit_source(seed, torch.device("cpu")) for seed in seeds or range(len(settings))]
    return Trainer(predictors, settings, sources, Objective(kind))


def by_loss(prediction, loss):
    return ValidationScore(-loss)


def scripted(scores, seen=None):
    """A validation that gives these scores in turn, and notes the predictions that it sees."""
    left = iter(scores)

    def validate(prediction, loss):
        if seen is not None:
            seen.append(prediction.clone())
        return ValidationScore(next(left), choice=len(seen or ()))

    return validate


def run(settings, training=None, validation=None, validate=by_loss, seeds=None, **options):
    seeds = seeds or range(len(settings))
    training = training or make_examples(40)
    validation = validation or make_examples(20, seed=1)
    return train(
        settings, training, validation, Objective("multiclass"), validate, seeds, CPU, **options
    )


# --- plain PyTorch --------------------------------------------------------------------------


def plain_model(predictors, member=0):
    """The same predictor as torch.nn, in float64.

    The biases before a norm are frozen: the norm takes them out again, their gradient is nothing
    but rounding, and Adam would make whole steps of it.
    """
    layers = []
    for i, weight in enumerate(predictors.weights):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data.copy_(weight[member].T)
        linear.bias.data.copy_(predictors.biases[i][member, 0])
        layers.append(linear)
        if i < len(predictors.scales):
            linear.bias.requires_grad_(False)
            layers += [nn.BatchNorm1d(weight.shape[2]), nn.Dropout(0.0), nn.ReLU()]
    return nn.Sequential(*layers).double()


def plain_loss(kind, outputs, targets):
    if kind == "multiclass":
        return F.cross_entropy(outputs, targets.argmax(dim=1))
    if kind == "multilabel":
        return F.binary_cross_entropy_with_logits(outputs, targets)
    return F.mse_loss(outputs.tanh(), targets)


def plain_step(model, optimizer, kind, features, targets):
    model.train()
    optimizer.zero_grad()
    loss = plain_loss(kind, model(features.double()), targets.double())
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_training_is_that_of_plain_pytorch(kind, layers):
    """Three epochs of batches of 16, 16 and 8 rows."""
    setting = replace(SETTING, hidden_layers=layers)
    examples, rows = make_examples(40, kind), make_examples(30, kind, seed=1)
    trainer = make_trainer([setting], kind)
    model = plain_model(trainer.predictors)
    optimizer = torch.optim.Adam(
        [each for each in model.parameters() if each.requires_grad], setting.lr
    )
    before = trainer.predictors.outputs(rows.features, 16)[0]
    for _ in range(3):
        for start in (0, 16, 32):
            features = examples.features.batch(start, start + 16)
            targets = examples.targets[start : start + 16]
            trainer.step(features, targets)
            plain_step(model, optimizer, kind, features, targets)
    model.eval()
    ours = trainer.predictors.outputs(rows.features, 16)[0]
    theirs = model(rows.features.batch(0, 30).double()).float()
    assert (ours - before).abs().max() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)
    losses = Objective(kind).losses(ours[None], rows.targets)
    torch.testing.assert_close(losses[0], plain_loss(kind, ours, rows.targets))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_gradient_is_that_of_autograd(kind, layers, dropout):
    """With the very values dropped that the trainer dropped."""
    setting = replace(SETTING, hidden_layers=layers, dropout=dropout)
    examples = make_examples(12, kind)
    trainer = make_trainer([setting], kind)
    model = plain_model(trainer.predictors)
    features, targets = examples.features.batch(0, 12), examples.targets
    trainer.step(features, targets)

    hidden = features.double()
    for i in range(layers):
        linear, norm = model[4 * i], model[4 * i + 1]
        passing = trainer.passing[i][0, :12].double()
        assert dropout == 0 or (passing == 0).any()
        hidden = norm(linear(hidden)).relu() * passing / (1 - dropout)
    plain_loss(kind, model[-1](hidden), targets.double()).backward()

    pieces = [model[4 * i].weight.grad.T for i in range(layers + 1)]
    pieces += [torch.zeros(8) for _ in range(layers)] + [model[-1].bias.grad]
    pieces += [model[4 * i + 1].weight.grad for i in range(layers)]
    pieces += [model[4 * i + 1].bias.grad for i in range(layers)]
    expected = torch.cat([piece.flatten().double() for piece in pieces])
    torch.testing.assert_close(trainer.gradient[0].double(), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_of_one_row_teaches_what_lies_above_the_norm():
    """Where PyTorch refuses: the norm lets nothing of a single row through, but its shift."""
    trainer = make_trainer([SETTING])
    weights = [weight.clone() for weight in trainer.predictors.weights]
    shift = trainer.predictors.shifts[0].fill_(0.5).clone()
    examples = make_examples(1)
    trainer.step(examples.features.batch(0, 1), examples.targets)
    assert torch.equal(trainer.predictors.weights[0], weights[0])
    assert not torch.equal(trainer.predictors.weights[1], weights[1])
    assert not torch.equal(trainer.predictors.shifts[0], shift)
    assert trainer.predictors.flat.isfinite().all()
    assert trainer.predictors.running.isfinite().all()


def test_the_last_batch_may_have_one_row():
    (trained,) = run([replace(SETTING, hidden_layers=2)], training=make_examples(33))
    assert math.isfinite(trained.validation.value)
    assert trained.predictor.flat.isfinite().all()


# --- drawing --------------------------------------------------------------------------------


@pytest.mark.parametrize("initialization", ["xavier_uniform_", "xavier_normal_"])
def test_weights_are_xaviers_and_biases_pytorchs(initialization):
    setting = replace(SETTING, hidden_layers=2, hidden_dim=300, initialization=initialization)
    drawn = Predictors.draw([setting], 200, 100, [torch.Generator().manual_seed(0)])
    assert drawn.widths == (200, 300, 300, 100)
    for i, (weight, bias) in enumerate(zip(drawn.weights, drawn.biases, strict=True)):
        inputs, outputs = drawn.widths[i : i + 2]
        deviation = (math.sqrt(2) if i else 1) * math.sqrt(2 / (inputs + outputs))
        assert weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(weight.mean().item()) < 4 * deviation / math.sqrt(inputs * outputs)
        uniform = initialization == "xavier_uniform_"
        assert (weight.abs().max() <= math.sqrt(3) * deviation * 1.0001) == uniform
        assert bias.abs().max() <= 1 / math.sqrt(inputs)
        assert bias.std().item() == pytest.approx(1 / math.sqrt(3 * inputs), rel=0.15)
    assert all((scale == 1).all() for scale in drawn.scales)
    assert all((shift == 0).all() for shift in drawn.shifts)
    assert all((mean == 0).all() for mean in drawn.means)
    assert all((variance == 1).all() for variance in drawn.variances)


def test_a_predictor_is_drawn_alike_wherever_it_stands():
    settings = [
        replace(SETTING, initialization=f"xavier_{each}_") for each in ("uniform", "normal")
    ]

    def draw(*members):
        generators = [torch.Generator().manual_seed(member) for member in members]
        return Predictors.draw([settings[member] for member in members], 5, 3, generators).flat

    assert torch.equal(draw(0, 1), torch.cat([draw(0), draw(1)]))
    assert torch.equal(draw(1, 0), torch.cat([draw(1), draw(0)]))


# --- side by side ---------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 2])
def test_predictors_side_by_side_are_as_if_alone(layers):
    settings = [
        replace(SETTING, hidden_layers=layers, dropout=0.25, **changes)
        for changes in (
            {"lr": 1e-2},
            {"lr": 1e-3, "initialization": "xavier_normal_", "max_epochs": 7},
            {"lr": 3e-2, "check_val_every_n_epoch": 3, "max_epochs": 9},
        )
    ]
    together = run(settings, seeds=[5, 6, 7])
    for i, setting in enumerate(settings):
        (alone,) = run([setting], seeds=[5 + i])
        assert together[i].setting == setting
        assert together[i].epoch == alone.epoch
        assert together[i].validation.value == pytest.approx(alone.validation.value, rel=1e-4)
        torch.testing.assert_close(
            together[i].predictor.flat, alone.predictor.flat, rtol=1e-3, atol=1e-4
        )


def test_one_that_stops_early_does_not_disturb_the_others():
    """The first learns nothing, and so is out after its third validation."""
    linear = replace(SETTING, hidden_layers=0)  # no running statistics that could change
    settings = [replace(linear, patience=2, lr=1e-30), replace(linear, max_epochs=12)]
    validated = []

    def validate(prediction, loss):
        validated.append(loss)
        return ValidationScore(-loss)

    together = run(settings, validate=validate)
    (alone,) = run(settings[1:], seeds=[1])
    assert len(validated) == 3 + 12
    assert (together[0].epoch, together[1].epoch) == (0, alone.epoch)
    torch.testing.assert_close(
        together[1].predictor.flat, alone.predictor.flat, rtol=1e-3, atol=1e-4
    )


def test_finished_ones_leave(monkeypatch):
    widths = []
    step = Trainer.step

    def spied(trainer, features, targets):
        widths.append(len(trainer.settings))
        step(trainer, features, targets)

    monkeypatch.setattr(Trainer, "step", spied)
    validated = []

    def validate(prediction, loss):
        validated.append(loss)
        return ValidationScore(-loss)

    settings = [replace(SETTING, max_epochs=epochs) for epochs in (2, 5, 3)]
    run(settings, training=make_examples(16), validate=validate)
    assert widths == [3, 3, 2, 1, 1]
    assert len(validated) == 2 + 5 + 3


def test_only_predictors_of_one_shape_stand_side_by_side():
    narrow = [replace(SETTING, hidden_layers=layers) for layers in (0, 1, 0, 1)]
    assert side_by_side(narrow, CPU) == [[0, 2], [1, 3]]
    other = [SETTING, replace(SETTING, lr=1.0), replace(SETTING, dropout=0.5)]
    assert side_by_side([*other, replace(SETTING, batch_size=8)], CPU) == [[0, 1], [2], [3]]
    wide = [replace(SETTING, hidden_dim=1024)] * 2
    assert side_by_side(wide, CPU) == [[0], [1]]
    assert side_by_side(wide, torch.device("cuda")) == [[0, 1]]
    for device in (CPU, torch.device("cuda")):
        assert side_by_side(narrow, device, shuffle=True) == [[0], [1], [2], [3]]


# --- stopping -------------------------------------------------------------------------------


def test_the_best_is_kept_and_the_earliest_of_equals():
    seen = []
    validation = make_examples(20, seed=1)
    setting = replace(SETTING, max_epochs=5)
    (trained,) = run([setting], validation=validation, validate=scripted([1, 3, 2, 3, 0], seen))
    assert (trained.epoch, trained.validation) == (1, ValidationScore(3, choice=2))
    prediction, outputs = trained.predict(validation.features)
    assert torch.equal(prediction, seen[1])
    assert not torch.equal(prediction, seen[4])
    assert torch.equal(prediction, outputs.softmax(dim=1))


def test_patience_counts_validations():
    seen = []
    setting = replace(SETTING, max_epochs=30, check_val_every_n_epoch=3, patience=2)
    (trained,) = run([setting], validate=scripted([1, 0, 2, 1, 2], seen))
    assert len(seen) == 5  # after epochs 2, 5, 8, 11, 14: the last two did not gain
    assert trained.epoch == 8


def test_epochs_after_the_last_validation_do_not_count():
    seen = []
    setting = replace(SETTING, max_epochs=10, check_val_every_n_epoch=3)
    (trained,) = run([setting], validate=scripted([1, 2, 3], seen))
    assert (len(seen), trained.epoch) == (3, 8)


def test_an_undefined_score_stops():
    seen = []
    (trained,) = run([SETTING], validate=scripted([1, math.nan], seen))
    assert (len(seen), trained.epoch) == (2, 0)
    assert run([SETTING], validate=scripted([math.nan])) == [None]
    never = replace(SETTING, check_val_every_n_epoch=5)
    assert run([never], validate=scripted([])) == [None]


def test_a_predictor_that_diverges_leaves_the_others_alone():
    settings = [replace(SETTING, lr=1e38), SETTING]

    def validate(prediction, loss):
        return ValidationScore(-loss if math.isfinite(loss) else math.nan)

    broken, good = run(settings, validate=validate)
    (alone,) = run([SETTING], seeds=[1])
    assert broken is None
    torch.testing.assert_close(good.predictor.flat, alone.predictor.flat, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rows", "validated"), [(0, 5), (5, 0)])
def test_no_rows_are_an_error(rows, validated):
    with pytest.raises(TaskError, match="no rows"):
        run([SETTING], training=make_examples(rows), validation=make_examples(validated))


# --- dropout and seeds ----------------------------------------------------------------------


def dropped_by(dropout, seeds, steps=1):
    """Return which values were dropped, (predictors, rows, width), and what the rest became."""
    setting = replace(SETTING, dropout=dropout, hidden_dim=128, batch_size=500)
    trainer = make_trainer([setting] * len(seeds), seeds=seeds)
    examples = make_examples(500)
    for _ in range(steps):
        trainer.predictors.scales[0].zero_()
        trainer.predictors.shifts[0].fill_(1.0)  # everything that is kept is 1, scaled
        trainer._forward(0, examples.features.batch(0, 500).expand(len(seeds), -1, -1))
    return trainer.hidden[0] == 0, trainer.hidden[0]


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_drops_its_share_and_scales_the_rest(dropout):
    dropped, values = dropped_by(dropout, [1, 2])
    deviation = math.sqrt(dropout * (1 - dropout) / dropped[0].numel())
    for mask in dropped:
        assert mask.float().mean().item() == pytest.approx(dropout, abs=5 * deviation)
        # Neither rows nor columns have favourites.
        for axis in (0, 1):
            means = mask.float().mean(axis)
            expected = math.sqrt(dropout * (1 - dropout) / mask.shape[axis])
            assert means.std().item() == pytest.approx(expected, rel=0.35)
    kept = values[~dropped]
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - dropout)), rtol=2**-15, atol=0.0
    )


def test_masks_are_independent_of_each_other():
    masks = dropped_by(0.5, [1, 2])[0].flatten(1).float()
    later = dropped_by(0.5, [1, 2], steps=2)[0].flatten(1).float()
    correlation = torch.corrcoef(torch.cat([masks, later])) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(masks.shape[1])
    assert torch.equal(masks[1], dropped_by(0.5, [2])[0].flatten().float())


def test_predicting_drops_nothing():
    (trained,) = run([replace(SETTING, dropout=0.5)])
    rows = make_examples(20).features
    assert torch.equal(trained.predict(rows)[1], trained.predict(rows)[1])


def test_the_same_seed_gives_the_same_bits():
    setting = replace(SETTING, dropout=0.1, hidden_layers=2)
    first, second, other = (run([setting], seeds=[seed])[0] for seed in (3, 3, 4))
    assert torch.equal(first.predictor.flat, second.predictor.flat)
    assert torch.equal(first.predictor.running, second.predictor.running)
    assert first.validation == second.validation
    assert not torch.equal(first.predictor.flat, other.predictor.flat)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    run([replace(SETTING, dropout=0.1)], shuffle=True)
    assert torch.equal(torch.rand(3), expected)


# --- rows -----------------------------------------------------------------------------------


@hypothesis_settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=5).filter(sum), size=st.integers(1, 12)
)
def test_several_tables_are_as_one(lengths, size):
    whole = torch.arange(2.0 * sum(lengths)).view(-1, 2)
    rows = Rows(whole.split(lengths))
    assert (len(rows), rows.width) == (sum(lengths), 2)
    parts = list(rows.batches(size))
    assert torch.equal(torch.cat(parts), whole)
    assert all(len(part) == size for part in parts[:-1])
    order = torch.randperm(len(rows))
    assert torch.equal(rows.take(order), whole[order])


def used_rows(monkeypatch, seeds=(3,), **options):
    """Return the first column of what each of two epochs of 40 rows is trained on."""
    used = []
    monkeypatch.setattr(Trainer, "step", lambda self, features, targets: used.append(features))
    run([replace(SETTING, max_epochs=2)], seeds=list(seeds), **options)
    assert [len(features) for features in used] == [16, 16, 8] * 2
    return [torch.cat(used[:3])[:, 0].tolist(), torch.cat(used[3:])[:, 0].tolist()]


def test_rows_are_not_shuffled_unless_asked_for(monkeypatch):
    order = make_examples(40).features.tables[0][:, 0].tolist()
    assert used_rows(monkeypatch) == [order, order]
    first, second = used_rows(monkeypatch, shuffle=True)
    assert sorted(first) == sorted(second) == sorted(order)
    assert len({tuple(each) for each in (order, first, second)}) == 3
    assert used_rows(monkeypatch, shuffle=True) == [first, second]
    assert used_rows(monkeypatch, shuffle=True, seeds=[4]) != [first, second]


def test_targets_are_shuffled_with_their_rows(monkeypatch):
    examples = make_examples(40)
    target_of = dict(
        zip(examples.features.tables[0][:, 0].tolist(), examples.targets.tolist(), strict=True)
    )

    def step(trainer, features, targets):
        for row, target in zip(features, targets, strict=True):
            assert target.tolist() == target_of[row[0].item()]

    monkeypatch.setattr(Trainer, "step", step)
    run([SETTING], training=examples, shuffle=True)


@pytest.mark.parametrize("layers", [0, 1])
def test_features_in_a_file_are_read_and_never_written(tmp_path, layers):
    examples = make_examples(40)
    path = tmp_path / "rows"
    examples.features.tables[0].numpy().tofile(path)
    before = path.read_bytes()
    mapped = np.memmap(path, np.float32, "r+", shape=(40, 5))  # could be written, so it would show
    setting = replace(SETTING, hidden_layers=layers)
    training = Examples(Rows([torch.from_numpy(mapped)]), examples.targets)
    (trained,) = run([setting], training, validation=training)
    trained.predict(training.features)
    mapped.flush()
    assert path.read_bytes() == before
    (expected,) = run([setting], examples, validation=examples)
    assert torch.equal(trained.predictor.flat, expected.predictor.flat)
