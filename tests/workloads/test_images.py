"""Real pictures and real weights: the published accuracy comes out."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.metrics import accuracy
from narrowcast.models import SmallCnn, SmallVit, cifar_resnet
from narrowcast.studies import data_folder
from narrowcast.workloads import Images, cifar10, fit, mnist

needs_data = pytest.mark.skipif(data_folder() is None, reason="NARROWCAST_DATA names no folder of real data")


@needs_data
def test_resnet20_has_the_accuracy_that_was_measured_in_full_precision():
    folder = data_folder() / "cifar10"
    train, test = cifar10(folder)
    assert (len(train), len(test)) == (3044, 761) or len(test) >= 500
    model = cifar_resnet(folder / "resnet20.safetensors")
    assert accuracy(model, test.head(500).batches(250)) == pytest.approx(91.0)


@needs_data
def test_digits_are_there_and_can_be_learned():
    train, test = mnist(data_folder() / "mnist")
    assert (len(train), len(test)) == (7997, 10000)
    torch.manual_seed(0)
    model = SmallCnn()
    losses = fit(model, train.head(2048), epochs=3)
    assert losses[-1] < losses[0]
    assert accuracy(model, test.head(500).batches(250)) > 40  # chance is 10


def test_shapes_and_seeds():
    x = torch.randn(3, 1, 28, 28)
    assert SmallVit(layers=1)(x).shape == SmallCnn()(x).shape == (3, 10)
    images = Images(torch.randn(20, 1, 28, 28), torch.arange(20) % 10)
    outcomes = []
    for _ in range(2):
        torch.manual_seed(1)
        model = SmallCnn()
        fit(model, images, epochs=1, batch=10, seed=3)
        outcomes.append(model(x).detach())
    assert torch.equal(*outcomes)


def test_missing_files_are_named(tmp_path):
    for load, name in ((cifar10, "cifar10_train"), (mnist, "mnist_train_8k")):
        with pytest.raises(InputError, match=name):
            load(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        cifar_resnet(tmp_path / "resnet20.safetensors")
