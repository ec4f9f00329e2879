import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from unified_video_action.model.diffusion import Diffusion, cosine_betas, draw_noise
from unified_video_action.model.samplers import Sampler, denoise
from unified_video_action.noise import randn


def sample(diffusion, network, shape, sampler):
    """Denoise rows of `shape` with a network of (x, t)."""
    chain = diffusion.chain(sampler)

    def step(i, x):
        output = network(x, torch.full(x.shape[:1], chain[i].t))
        return output[:, : shape[1]], output[:, shape[1] :] if diffusion.learned_variance else None

    noise = draw_noise(shape, sampler.noise_draws, torch.Generator().manual_seed(0), torch.device("cpu"))
    return denoise(step, noise, chain, clamp=1.0)


def test_schedule_and_respacing_have_the_published_values():
    betas = cosine_betas(1000)
    abar = np.cumprod(1 - betas)
    assert betas[0] == pytest.approx(4.1284e-5, rel=1e-4) and betas[999] == 0.999
    assert abar[500] == pytest.approx(0.492285, abs=1e-6) and abar[999] == pytest.approx(2.4288e-9, rel=1e-4)
    assert [step.t for step in reversed(Diffusion().chain(Sampler("ancestral", 16)))] == [
        0, 67, 133, 200, 266, 333, 400, 466, 533, 599, 666, 733, 799, 866, 932, 999,
    ]  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample", "flow"])
def test_samples_have_the_distribution_that_the_network_knows(prediction):
    """For normal data the best network is known in closed form, so samples must have its mean and spread."""
    mean, std = torch.tensor([0.4, -0.3]), torch.tensor([0.1, 0.2])
    diffusion = Diffusion(prediction=prediction, learned_variance=False)

    def best(x, t):
        at = diffusion.tables.at(t)
        a, s = at["signal"], at["noise"]
        x0 = (mean * s**2 + x * a * std**2) / (a**2 * std**2 + s**2)
        noise = (x - a * x0) / s
        return {"epsilon": noise, "v": a * noise - s * x0, "sample": x0, "flow": noise - x0}[prediction]

    drawn = sample(diffusion, best, (4000, 2), Sampler("euler" if prediction == "flow" else "ancestral"))
    assert torch.allclose(drawn.mean(0), mean, atol=0.02)
    assert 0.8 < (drawn.std(0) / std).mean() < 1.05


def test_the_loss_is_least_at_the_truth_and_reaches_the_variance_only_through_the_bound():
    diffusion = Diffusion()
    x0, noise = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    t = torch.arange(0, 1000, 20)
    perfect = torch.cat([noise, torch.zeros_like(noise)], dim=-1)
    squared_error, bound = diffusion.loss(perfect, x0, t, noise)
    assert squared_error.max() == 0
    worse, worse_bound = diffusion.loss(perfect + torch.tensor([1.0] * 3 + [0.0] * 3), x0, t, noise)
    assert torch.allclose(worse, torch.ones_like(worse)) and worse_bound.mean() > bound.mean()

    output = perfect.clone().requires_grad_()
    diffusion.loss(output, x0, t, noise)[1].sum().backward()
    assert output.grad[:, :3].abs().max() == 0 and output.grad[:, 3:].abs().min() > 0


def test_generators_make_a_sample_independent_of_its_batch():
    generators = [[torch.Generator().manual_seed(seed) for seed in seeds] for seeds in ((1, 2), (2,), (1, 2))]
    together, alone = randn((6, 4), generators[0], torch.zeros(())), randn((3, 4), generators[1], torch.zeros(()))
    assert torch.equal(together[3:], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3 rows"):
        randn((3, 4), generators[2], torch.zeros(()))


@pytest.mark.parametrize("text", ["ddim", "heun10", "ancestral0", "ddim2000", ""])
def test_bad_samplers_are_refused(text):
    with pytest.raises(ValueError, match="(?i)sampler"):
        Sampler.parse(text)


@pytest.mark.parametrize(
    ("length", "counts"), [(50, range(1, 51)), (100, range(1, 101)), (1000, (16, 61, 103, 121, 122, 201, 1000))]
)
def test_so_many_steps_are_taken_as_asked_for_and_no_more_than_were_trained(length, counts):
    diffusion = Diffusion(length, prediction="sample", learned_variance=False)
    for kind in ("ddim", "dpm", "ancestral"):
        for count in counts:
            taken = [step.t for step in diffusion.chain(Sampler(kind, count))]
            assert len(taken) == count and taken[0] == length - 1 and taken[-1] >= 0, (kind, count)
            assert taken == sorted(set(taken), reverse=True), (kind, count)
        if length < 1000:
            with pytest.raises(ValueError, match=f"{kind}{length + 1} has more steps than the chain of {length}"):
                diffusion.chain(Sampler(kind, length + 1))


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("sampler", ["ddim1", "ddim7", "ddim10", "dpm1", "dpm2", "dpm10", "dpm16"])
def test_few_step_solvers_equal_those_of_diffusers(prediction, sampler):
    sampler, diffusion = Sampler.parse(sampler), Diffusion(prediction=prediction)
    shared = dict(trained_betas=diffusion.betas, prediction_type="sample", timestep_spacing="trailing")
    if sampler.kind == "ddim":
        scheduler = DDIMScheduler(**shared, clip_sample=False, set_alpha_to_one=True)
    else:
        scheduler = DPMSolverMultistepScheduler(**shared, final_sigmas_type="zero", lower_order_final=True)
    scheduler.set_timesteps(sampler.steps)

    def network(x, t):  # any smooth function of both
        return torch.cat([torch.sin(3 * x + t.unsqueeze(-1) / 300), x], dim=-1)

    x = randn((50, 3), torch.Generator().manual_seed(0), torch.zeros(()))
    for t in scheduler.timesteps.tolist():
        steps = torch.full(x.shape[:1], t)
        x0 = diffusion.x0(network(x, steps)[:, :3], x, steps).clamp(-1, 1)
        x = scheduler.step(x0, t, x, return_dict=False)[0]
    drawn = sample(diffusion, network, (50, 3), sampler)
    assert [step.t for step in diffusion.chain(sampler)] == scheduler.timesteps.tolist()
    # A difference of rounding in x counts 2e4-fold in x0 where the network predicts noise and x0 is not clamped.
    assert torch.allclose(drawn, x, atol=1e-4)


def test_a_flow_that_is_known_is_followed_in_one_step_and_other_samplers_are_refused():
    diffusion, data = Diffusion(prediction="flow", learned_variance=False), torch.tensor([0.4, -0.3])

    def velocity(x, t):  # of a single point of data, whatever the noise: its lines are straight
        return (x - data) / diffusion.tables.at(t)["noise"]

    for steps in (1, 3):
        assert torch.allclose(
            sample(diffusion, velocity, (5, 2), Sampler("euler", steps)), data.expand(5, 2), atol=1e-5
        )
    for prediction, sampler in (("flow", "ddim10"), ("sample", "euler10")):
        with pytest.raises(ValueError, match=f"{sampler} is not for a head with prediction: {prediction}"):
            Diffusion(prediction=prediction, learned_variance=False).chain(Sampler.parse(sampler))
