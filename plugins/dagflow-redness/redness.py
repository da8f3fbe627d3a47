import dagflow


class Redness:
    """How much redder than anything else an image is."""

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@dagflow.hookimpl
def dagflow_register_rewards():
    return {"redness": Redness}
