"""Small classifiers of 28x28 images, trained in seconds on real ones: the models of the examples in this folder.

The 2,000 labelled Fashion-MNIST images of models/ are all they need: 1,500 to train, 500 that training does not see.
"""

from pathlib import Path
from typing import Any

import numpy as np

IMAGES = Path(__file__).parents[2] / "models" / "fashion_test.npz"
TRAINED_ON = 1_500


def images() -> tuple[Any, Any, Any, Any]:
    """Images (float32 [n,1,28,28] in [0,1]) and labels to train on, then those to test on."""
    with np.load(IMAGES) as archive:
        image, labels = archive["image"], archive["labels"]
    return image[:TRAINED_ON], labels[:TRAINED_ON], image[TRAINED_ON:], labels[TRAINED_ON:]


def untrained() -> Any:
    """A PyTorch module: two convolutions, two linear layers."""
    from torch import nn

    class Cnn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(1, 8, 3, stride=2, padding=1)
            self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
            self.fc1 = nn.Linear(16 * 7 * 7, 32)
            self.fc2 = nn.Linear(32, 10)

        def forward(self, image: Any) -> Any:
            x = self.conv2(self.conv1(image).relu()).relu()
            return self.fc2(self.fc1(x.flatten(1)).relu())

    return Cnn()


def torch_cnn() -> Any:
    """The same, trained for five epochs."""
    import torch

    torch.manual_seed(0)
    module, (image, labels, _, _) = untrained(), images()
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    image, labels = torch.from_numpy(image), torch.from_numpy(labels)
    for _ in range(5):
        for batch in torch.randperm(TRAINED_ON).split(50):
            loss = torch.nn.functional.cross_entropy(module(image[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module


def keras_cnn() -> Any:
    """A Keras model with the layers of InjectTF2's example, trained for four epochs."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1), name="image"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="conv2d"),
            layers.MaxPool2D(name="max_pooling2d"),
            layers.Flatten(name="flatten"),
            layers.Dense(32, activation="relu", name="dense"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(10, name="dense_1"),
            layers.Softmax(name="softmax"),
        ]
    )
    image, labels, _, _ = images()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy())
    model.fit(np.moveaxis(image, 1, -1), labels, batch_size=25, epochs=4, verbose=0)
    return model


def save_test_images(file: Path, *, channels_last: bool = False) -> None:
    """Write the images to test on as onnxfi reads them; Keras has the channels last."""
    _, _, image, labels = images()
    np.savez(file, image=np.moveaxis(image, 1, -1) if channels_last else image, labels=labels)


def digits() -> Any:
    """A scikit-learn pipeline, fitted on the first 1,500 of its 8x8 digits."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pixels, labels = load_digits(return_X_y=True)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(pixels[:1500], labels[:1500])


def digits_to_test() -> dict[str, Any]:
    """The other digits, as `--data nets:digits_to_test` takes them."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return {"X": pixels[1500:].astype(np.float32), "labels": labels[1500:]}


def test_images() -> dict[str, Any]:
    """The images to test on, as `--data nets:test_images` takes them."""
    _, _, image, labels = images()
    return {"image": image, "labels": labels}


def test_images_channels_last() -> dict[str, Any]:
    """The same for Keras."""
    _, _, image, labels = images()
    return {"image": np.moveaxis(image, 1, -1), "labels": labels}
