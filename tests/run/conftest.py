import pytest

from layerwise_lr.run.reading import from_data


@pytest.fixture
def rich():
    """Something under every key that holds mappings or durations."""
    return from_data(
        {
            "model": {"name": "resnet18"},
            "data": {"channels": 3, "image_size": 32, "train_size": 320, "mean": [0.1, 0.2, 0.3], "std": [1.0]},
            "scheduler": {"name": "cosine", "warmup": "10%"},
            "epochs": 3,
            "eval_every": "50%",
            "schedules": {
                "s": {"name": "step", "every": "2 epochs"},
                "m": {"name": "multistep", "milestones": ["50%", 25]},
                "j": {"name": "join", "parts": ["s", "m"], "starts": ["1 epoch"]},
            },
            "optimizers": {"o": {"name": "momentum", "nesterov": True}},
            "grouping": {
                "groups": {
                    "stem": {"match": ["conv1.*"], "start": "1 epoch", "stop": "80%", "optimizer": "o", "schedule": "j"}
                }
            },
            "freeze": {"strategy": "progressive", "every": "5 steps", "stages": ["layer4"]},
            "checkpoint": {"every": "1 epoch", "keep": 2},
        }
    )
