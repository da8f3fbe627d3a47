"""Plugins that are wrong in one way each, and the check that must notice: (check, advice, source).

Each source is a module on disk; it defines `factory`, to which the hook is added.
"""

from __future__ import annotations

Defect = tuple[str, str, str]

REWARD = """
    class factory:
        "A score."
        def __call__(self, images, prompts):
            return images.mean((1, 2, 3))
"""
REWARDS: list[Defect] = [
    ("import_is_light", "imports torch", """
        import torch
        def factory():
            "Mean."
            return lambda images, prompts: images.mean((1, 2, 3))
    """),
    ("options_are_documented", "has no docstring", """
        def factory():
            return lambda images, prompts: images.mean((1, 2, 3))
    """),
    ("options_are_documented", "has no docstring", """
        from dataclasses import dataclass
        @dataclass
        class factory:
            strength: float = 1.0
            def __call__(self, images, prompts): return images.mean((1, 2, 3))
    """),
    ("options_are_documented", "option 'strength' has no default", """
        def factory(strength: float):
            "A score."
            return lambda images, prompts: images.mean((1, 2, 3))
    """),
    ("returns_one_float_for_each_image", "returned list, not a tensor", """
        def factory():
            "A list."
            return lambda images, prompts: images.mean((1, 2, 3)).tolist()
    """),
    ("returns_one_float_for_each_image", "returned the shape (6, 1)", """
        def factory():
            "A column."
            return lambda images, prompts: images.mean((1, 2, 3))[:, None]
    """),
    ("returns_one_float_for_each_image", "returned torch.float16", """
        def factory():
            "Half precision."
            return lambda images, prompts: images.mean((1, 2, 3)).half()
    """),
    ("returns_one_float_for_each_image", "returned torch.int64", """
        def factory():
            "Whole numbers."
            return lambda images, prompts: (255 * images.mean((1, 2, 3))).long()
    """),
    ("returns_one_float_for_each_image", "raised KeyError: 'bias' (", """
        def factory():
            "Reads what is not there."
            return lambda images, prompts: images.mean((1, 2, 3)) + prompts[0].metadata["bias"]
    """),
    ("order_of_the_batch_is_kept", "returned the shape (6, 1) for a batch, not (6,)", """
        def factory():
            "A column."
            return lambda images, prompts: images.mean((1, 2, 3))[:, None]
    """),
    ("scores_are_finite", "for a black image", """
        def factory():
            "Contrast, divided by nothing."
            return lambda images, prompts: images.std((1, 2, 3)) / images.mean((1, 2, 3))
    """),
    ("score_does_not_depend_on_the_neighbours", "Move any normalisation over the batch", """
        def factory():
            "Centred on the batch."
            def score(images, prompts):
                values = images.mean((1, 2, 3))
                return values - values.mean() if len(values) else values
            return score
    """),
    ("score_does_not_depend_on_the_neighbours", "with its own prompt only", """
        def factory():
            "The last prompt for all."
            return lambda images, prompts: images.mean((1, 2, 3)) + len(prompts[-1].text)
    """),
    ("order_of_the_batch_is_kept", "Return score i for image i", """
        def factory():
            "Sorted."
            return lambda images, prompts: images.mean((1, 2, 3)).sort().values
    """),
    ("same_input_same_score", "Draw no random numbers", """
        def factory():
            "Noisy."
            def score(images, prompts):
                import torch
                return images.mean((1, 2, 3)) + 0.01 * torch.rand(len(images))
            return score
    """),
    ("same_input_same_score", "keep no running statistics", """
        class factory:
            "Less a running mean."
            mean = 0.0
            def __call__(self, images, prompts):
                values = images.mean((1, 2, 3))
                self.mean = 0.9 * self.mean + 0.1 * float(values.mean())
                return values - self.mean
    """),
    ("same_score_after_a_restart", "load weights from a file", """
        class factory:
            "Random weights."
            def __init__(self):
                import torch
                self.weights = torch.rand(3)
            def __call__(self, images, prompts):
                return images.mean((2, 3)) @ self.weights
    """),
    ("same_score_from_several_threads", "Keep nothing on self", """
        import time
        class factory:
            "Forgets which batch it looks at."
            concurrency = 4
            def __call__(self, images, prompts):
                self.images = images
                time.sleep(0.02)
                return self.images.mean((1, 2, 3))
    """),
    ("same_score_from_several_threads", "positive whole number", """
        class factory:
            "Many."
            concurrency = "many"
            def __call__(self, images, prompts):
                return images.mean((1, 2, 3))
    """),
    ("empty_batch", "for an empty batch", """
        def factory():
            "Stacks."
            def score(images, prompts):
                import torch
                return torch.stack([image.mean() for image in images])
            return score
    """),
    ("empty_batch", "for no images, not (0,)", """
        def factory():
            "One too many."
            return lambda images, prompts: images.mean((1, 2, 3)) if len(images) else images.sum()
    """),
    ("batch_of_one", "A bare squeeze() drops the batch", """
        def factory():
            "Squeezed."
            return lambda images, prompts: images.mean((2, 3)).mean(1, keepdim=True).squeeze()
    """),
    ("odd_image_sizes", "for images of 37 x 53 pixels", """
        def factory():
            "Reshaped."
            return lambda images, prompts: images.reshape(len(images), 3 * 32 * 32).mean(1)
    """),
    ("odd_image_sizes", "resize or pad them", """
        def factory():
            "Not a number off 32."
            return lambda images, prompts: (
                images.mean((1, 2, 3)) / (1.0 if images.shape[2] == 32 else float("nan"))
            )
    """),
    ("unusual_prompts", "raised UnicodeEncodeError: ", """
        def factory():
            "ASCII alone."
            return lambda images, prompts: images.mean((1, 2, 3)) + sum(
                len(prompt.text.encode("ascii")) for prompt in prompts) * 0
    """),
    ("unusual_prompts", "for a prompt of 10,000 characters", """
        def factory():
            "Of 77 letters."
            def score(images, prompts):
                values = images.mean((1, 2, 3))
                return values if all(len(p.text) < 78 for p in prompts) else values / 0
            return score
    """),
    ("inputs_are_not_modified", "changed the images", """
        def factory():
            "In place."
            return lambda images, prompts: images.mul_(2).mean((1, 2, 3))
    """),
    ("inputs_are_not_modified", "changed the prompts", """
        def factory():
            "Takes notes."
            def score(images, prompts):
                for prompt in prompts:
                    prompt.metadata["seen"] = True
                return images.mean((1, 2, 3))
            return score
    """),
]  # fmt: skip

PROMPTS_SOURCE = """
    class factory(list):
        "Some prompts."
        heldout = ("a fish",)
        def __init__(self): super().__init__(["a cat", "a dog", "a bird"])
"""
PROMPTS: list[Defect] = [
    ("import_is_light", "imports jax", """
        import sys
        sys.modules["jax"] = sys  # costs less than the real one
        def factory():
            "Two."
            return ["a cat", "a dog"]
    """),
    ("options_are_documented", "has no docstring", """
        def factory(): return ["a cat", "a dog"]
    """),
    ("is_a_finite_sequence", "is a generator", """
        def factory():
            "Endless."
            while True: yield "a cat"
    """),
    ("is_a_finite_sequence", "is empty", """
        def factory():
            "None."
            return []
    """),
    ("is_a_finite_sequence", "finds more items", """
        class factory:
            "Ends late."
            def __len__(self): return 2
            def __getitem__(self, index): return "a cat"
    """),
    ("items_are_texts", "item 1 is int", """
        def factory():
            "A number."
            return ["a cat", 3]
    """),
    ("items_are_texts", "item 0 is ' '", """
        def factory():
            "Blank."
            return [" ", "a cat"]
    """),
    ("items_are_texts", "the metadata of item 0 is NoneType", """
        from dagflow import Prompt
        def factory():
            "Nothing known."
            return [Prompt("a cat", None)]
    """),
    ("built_twice_it_is_the_same", "sort what comes from a set", """
        from itertools import count
        numbers = count()
        def factory():
            "Another each time."
            return [f"cat {next(numbers)}"]
    """),
    ("built_twice_it_is_the_same", "sort what comes from a set", """
        def factory():
            "In the order of a set."
            return list({f"{colour} {animal}" for colour in "abcdef" for animal in "ghijkl"})
    """),
    ("walked_twice_it_is_the_same", "a fixed sequence", """
        from itertools import count
        class factory:
            "Drawn on the way."
            def __init__(self): self.numbers = count()
            def __len__(self): return 2
            def __getitem__(self, index):
                if index >= 2: raise IndexError
                return f"cat {next(self.numbers)}"
    """),
    ("items_by_number_are_those_of_the_walk", "item -3 raised IndexError", """
        class factory:
            "No numbers from the end."
            def __len__(self): return 3
            def __getitem__(self, index):
                if not 0 <= index < 3: raise IndexError(index)
                return f"cat {index}"
    """),
    ("items_by_number_are_those_of_the_walk", "is not item 0 in iteration", """
        class factory(list):
            "Backwards by number."
            def __init__(self): super().__init__(["a cat", "a dog"])
            def __getitem__(self, index): return super().__getitem__(~index)
    """),
    ("items_by_number_are_those_of_the_walk", "raises KeyError, not IndexError", """
        class factory(list):
            "Another error."
            def __init__(self): super().__init__(["a cat", "a dog"])
            def __getitem__(self, index):
                if not -2 <= index < 2: raise KeyError(index)
                return super().__getitem__(index)
    """),
    ("items_by_number_are_those_of_the_walk", "raise IndexError", """
        class factory(list):
            "Goes round."
            def __init__(self): super().__init__(["a cat", "a dog"])
            def __getitem__(self, index): return super().__getitem__(index % 2)
    """),
    ("heldout_is_separate", "both trained on and held out", """
        class factory(list):
            "Both."
            heldout = ["a dog"]
            def __init__(self): super().__init__(["a cat", "a dog"])
    """),
    ("heldout_is_separate", "heldout: item 0 is int", """
        class factory(list):
            "Ill-formed."
            heldout = [7]
            def __init__(self): super().__init__(["a cat", "a dog"])
    """),
    ("heldout_is_separate", "heldout is a set", """
        class factory(list):
            "Unordered."
            heldout = {"a fish"}
            def __init__(self): super().__init__(["a cat", "a dog"])
    """),
]  # fmt: skip

OBJECTIVE_HEAD = """
    import torch
    from torch import nn
    from dagflow import Needs
    class Flow(nn.Module):
        def __init__(self, spec):
            super().__init__()
            self.a = nn.Linear(spec.latent_channels, 1)
            self.b = nn.Linear(spec.cross_attention_dim, 1)
        def forward(self, latents, timesteps, prompt_embeds):
            time = timesteps[:, None] / 1000
            return (self.a(latents.mean((2, 3))) + self.b(prompt_embeds.mean(1)) + time).squeeze(1)
"""
OBJECTIVE = """
    class factory(nn.Module):
        "Detailed balance."
        needs = Needs(log_flow=True, log_pb=True, potentials=True)
        def __init__(self, spec):
            super().__init__()
            self.flow = Flow(spec)
        def forward(self, batch):
            delta = batch.log_flow + batch.log_pf - batch.log_flow_next - batch.log_pb
            return delta**2, {"residual": delta}
"""
OBJECTIVES: list[Defect] = [
    ("import_is_light", "imports torch", """
        class factory:
            "Heavy: the module imports torch above."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {}
    """),
    ("options_are_documented", "option 'width' has no default", """
        class factory:
            "An objective."
            needs = Needs()
            def __init__(self, spec, width: int): pass
            def __call__(self, batch): return batch.log_pf**2, {}
    """),
    ("needs_are_declared", "has no attribute `needs`", """
        class factory:
            "Needs nothing, and does not say so."
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {}
    """),
    ("loss_is_one_number_for_each_transition", "Do not average", """
        class factory:
            "A mean."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return (batch.log_pf**2).mean(), {}
    """),
    ("loss_is_one_number_for_each_transition", "not the pair (loss, metrics)", """
        class factory:
            "A loss alone."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2
    """),
    ("loss_is_one_number_for_each_transition", "on 8 transitions", """
        class factory:
            "Fails."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf + "text", {}
    """),
    ("loss_is_finite_on_both_scales_and_at_beta_zero", "do not divide by it", """
        class factory:
            "Divides by beta."
            needs = Needs(log_pb=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return (batch.log_pf - batch.log_pb) / batch.beta, {}
    """),
    ("loss_is_finite_on_both_scales_and_at_beta_zero", "with scale = 256", """
        class factory:
            "A ratio of two densities."
            needs = Needs(log_pb=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return (batch.log_pf - batch.log_pb).exp(), {}
    """),
    ("window_may_be_cut_anywhere", "Declare Needs(window=True)", """
        class factory:
            "Centred on the micro-batch."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return (batch.log_pf - batch.log_pf.mean())**2, {}
    """),
    ("batch_of_one", "in a window of one", """
        class factory:
            "A deviation of one number."
            needs = Needs(window=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf / (batch.window.log_pf**2).var(), {}
    """),
    ("gradients_reach_log_pf_and_own_parameters_only", "the policy would never learn", """
        class factory(nn.Module):
            "Detached."
            needs = Needs()
            def __init__(self, spec):
                super().__init__()
                self.log_z = nn.Parameter(torch.zeros(()))
            def forward(self, batch): return (self.log_z - batch.log_pf.detach())**2, {}
    """),
    ("gradients_reach_log_pf_and_own_parameters_only", "not its parameters, of shape (3,)", """
        class factory(nn.Module):
            "A parameter in a list."
            needs = Needs()
            def __init__(self, spec):
                super().__init__()
                self.hidden = [nn.Parameter(torch.zeros(3))]
            def forward(self, batch): return (self.hidden[0].sum() - batch.log_pf)**2, {}
    """),
    ("gradients_reach_log_pf_and_own_parameters_only", "reaches its parameters log_z", """
        class factory(nn.Module):
            "A parameter without use."
            needs = Needs()
            def __init__(self, spec):
                super().__init__()
                self.log_z = nn.Parameter(torch.zeros(()))
            def forward(self, batch): return batch.log_pf**2, {}
    """),
    *(
        ("it_uses_nothing_that_it_does_not_declare", f"Declare Needs({need}=True)", f"""
        class factory:
            "Uses {field}."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return {use}, {{}}
        """)
        for need, field, use in (
            ("log_pb", "log_pb", "batch.log_pf - batch.log_pb"),
            ("log_flow", "log_flow", "batch.log_flow + batch.log_pf"),
            ("log_flow", "log_flow_next", "torch.stack([batch.log_flow_next, batch.log_pf])[0]"),
            ("rewards", "log_reward", "batch.log_pf * batch.log_reward"),
            ("rewards", "prompt", "batch.log_pf * (batch.prompt == 0)"),
            ("rewards", "trajectory", "batch.log_pf * (batch.trajectory[:, None] == 0).sum(1)"),
            ("window", "window", "batch.log_pf - batch.window.log_pf.mean()"),
        )
    ),
    ("it_uses_nothing_that_it_does_not_declare", "Declare Needs(rewards=True)", """
        class factory:
            "Looks for rewards in the window."
            needs = Needs(window=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf - batch.window.log_reward.mean(), {}
    """),
    *(
        ("it_uses_what_it_declares", f"declares Needs({need}=True) but does not use", f"""
        class factory(nn.Module):
            "Asks for {need} and ignores it."
            needs = Needs({need}=True)
            def __init__(self, spec):
                super().__init__()
                self.flow = Flow(spec)
            def forward(self, batch): return batch.log_pf**2, {{}}
        """)
        for need in ("log_pb", "log_flow", "rewards", "window")
    ),
    ("it_uses_what_it_declares", "declares Needs(potentials=True) without log_flow", """
        class factory:
            "Asks for potentials alone."
            needs = Needs(potentials=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {}
    """),
    ("flow_is_a_module_of_its_own", "it must be an nn.Module with a module `flow`", """
        class factory:
            "No flow."
            needs = Needs(log_flow=True)
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf - batch.log_flow, {}
    """),
    ("flow_is_a_module_of_its_own", "flow returned the shape (3, 1)", """
        class factory(nn.Module):
            "A flow of columns."
            needs = Needs(log_flow=True)
            def __init__(self, spec):
                super().__init__()
                self.flow = Column(spec)
            def forward(self, batch): return batch.log_pf - batch.log_flow, {}
        class Column(Flow):
            def forward(self, *inputs): return super().forward(*inputs)[:, None]
    """),
    ("flow_is_a_module_of_its_own", "take their widths from the PolicySpec", """
        class factory(nn.Module):
            "A flow for other latents."
            needs = Needs(log_flow=True)
            def __init__(self, spec):
                super().__init__()
                self.flow = nn.Bilinear(768, 768, 1)
            def forward(self, batch): return batch.log_pf - batch.log_flow, {}
    """),
    ("same_input_same_loss", "Draw no", """
        class factory:
            "Noisy."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf * torch.rand(len(batch.log_pf)), {}
    """),
    ("saved_and_loaded_it_is_the_same", "All that changes must be in its state_dict", """
        class factory(nn.Module):
            "Weights that depend on nothing saved."
            needs = Needs()
            def __init__(self, spec):
                super().__init__()
                self.weight = torch.rand(())
            def forward(self, batch): return self.weight * batch.log_pf, {}
    """),
    ("saved_and_loaded_it_is_the_same", "All that changes must be in its state_dict", """
        class factory:
            "Counts in a plain attribute."
            needs = Needs()
            calls = 0
            def __init__(self, spec): pass
            def __call__(self, batch):
                self.calls += 1
                return batch.log_pf * self.calls, {}
    """),
    ("saved_and_loaded_it_is_the_same", "its state_dict cannot be saved", """
        class factory(nn.Module):
            "Something else than tensors."
            needs = Needs()
            def __init__(self, spec): super().__init__()
            def get_extra_state(self): return [1, 2]
            def set_extra_state(self, state): pass
            def forward(self, batch): return batch.log_pf**2, {}
    """),
    ("saved_and_loaded_it_is_the_same", "does not accept the saved state", """
        class factory(nn.Module):
            "Of a size drawn at random."
            needs = Needs()
            sizes = [2, 3]
            def __init__(self, spec):
                super().__init__()
                self.log_z = nn.Parameter(torch.zeros(self.sizes.pop(0)))
            def forward(self, batch): return batch.log_pf + self.log_z.sum(), {}
    """),
    ("metrics_are_tensors_under_names_of_their_own", "the metric 'size' is float", """
        class factory:
            "A number."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {"size": 1.0}
    """),
    ("metrics_are_tensors_under_names_of_their_own", "a name that the engine uses", """
        class factory:
            "A name twice."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {"loss": batch.log_pf}
    """),
    ("metrics_are_tensors_under_names_of_their_own", "is not finite", """
        class factory:
            "Not a number."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, {"nan": batch.log_pf * float("nan")}
    """),
    ("metrics_are_tensors_under_names_of_their_own", "not a mapping of name to tensor", """
        class factory:
            "None."
            needs = Needs()
            def __init__(self, spec): pass
            def __call__(self, batch): return batch.log_pf**2, None
    """),
]  # fmt: skip
