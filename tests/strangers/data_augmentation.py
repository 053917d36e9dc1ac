"""Answers to the exercises of chapter 10, from the words of the questions alone."""

import functools
import itertools
import math
import random

import numpy as np
import torch
from torch.nn import functional as F

# --- Exercise 0: flip(images, p, generator) ------------------------------------------


def flip_where(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_masked_copy(images, p, generator):
    result = images.clone()
    chosen = torch.rand(images.shape[0], generator=generator) < p
    result[chosen] = result[chosen].flip(3)
    return result


def flip_loop(images, p, generator):
    result = torch.empty_like(images)
    for i, image in enumerate(images):
        mirrored = torch.rand((), generator=generator).item() < p
        result[i] = torch.stack([torch.fliplr(x) for x in image]) if mirrored else image
    return result


def flip_bernoulli(images, p, generator):
    chosen = torch.bernoulli(torch.full((len(images),), float(p)), generator=generator)
    rows = [x.flip(-1) if c else x for x, c in zip(images, chosen.tolist(), strict=True)]
    return torch.stack(rows)


def flip_multinomial(images, p, generator):
    both = torch.stack([images, torch.flip(images, dims=(3,))])
    odds = torch.tensor([1.0 - p, p])
    chosen = torch.multinomial(odds, len(images), replacement=True, generator=generator)
    return both[chosen, torch.arange(len(images))]


def flip_gather(images, p, generator):
    n, _, _, w = images.shape
    chosen = torch.empty(n).uniform_(generator=generator) < p
    there = torch.arange(w).repeat(n, 1)
    there[chosen] = w - 1 - there[chosen]
    return images.gather(3, there[:, None, None, :].expand_as(images))


def flip_normal(images, p, generator):
    # a normal number lies below its p-quantile with probability p
    border = torch.special.ndtri(torch.tensor(p, dtype=torch.float64))
    chosen = torch.randn(len(images), generator=generator) < border
    result = images.detach().clone()
    for i in chosen.nonzero().flatten().tolist():
        result[i] = images[i, :, :, range(images.shape[-1] - 1, -1, -1)]
    return result


def flip_exponential(images, p, generator):
    waits = torch.empty(len(images)).exponential_(generator=generator)
    chosen = waits > (-math.log(p) if p > 0 else math.inf)
    steps = [-1 if c else 1 for c in chosen.tolist()]
    there = torch.arange(images.shape[-1])
    pairs = zip(images, steps, strict=True)
    return torch.stack([x[..., there if s > 0 else there.flip(0)] for x, s in pairs])


def flip_numpy_pixels(images, p, generator):
    # the decisions come from the generator, NumPy moves the pixels
    chosen = torch.rand(len(images), generator=generator).numpy() < p
    pixels = images.numpy().copy()
    pixels[chosen] = pixels[chosen, ..., ::-1]
    return torch.from_numpy(pixels)


def flip_all_or_none(images, p, generator):
    if torch.rand(1, generator=generator) < p:
        images = images.flip(-1)
    return images


def flip_global_generator(images, p, generator):
    chosen = torch.rand(len(images)) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_python_random(images, p, generator):
    return torch.stack([x.flip(-1) if random.random() < p else x for x in images])


def flip_upside_down(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-2), images)


def flip_in_place(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    images[chosen] = images[chosen].flip(-1)
    return images


def flip_exact_share(images, p, generator):
    # always round(p n) images: the decisions are not their own
    n = len(images)
    chosen = torch.randperm(n, generator=generator)[: round(p * n)]
    result = images.clone()
    result[chosen] = images[chosen].flip(-1)
    return result


def flip_each_channel(images, p, generator):
    n, c = images.shape[:2]
    chosen = torch.rand(n, c, 1, 1, generator=generator) < p
    return torch.where(chosen, images.flip(-1), images)


def flip_each_pixel(images, p, generator):
    chosen = torch.rand(images.shape, generator=generator) < p
    return torch.where(chosen, images.flip(-1), images)


def flip_other_probability(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) > p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_always_half(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_seeds_anew(images, p, generator):
    generator.manual_seed(0)
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_copies_generator(images, p, generator):
    # the copy moves on, the generator does not: every call decides the same
    own = torch.Generator()
    own.set_state(generator.get_state())
    chosen = torch.rand(len(images), generator=own) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def flip_list(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return [x.flip(-1) if c else x for x, c in zip(images, chosen, strict=True)]


def flip_order_of_images(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(0), images)


def flip_turns(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1, -2), images)


def flip_only_mirrored(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return images[chosen].flip(-1)


def flip_mirrored_last(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.cat([images[~chosen], images[chosen].flip(-1)])


def flip_last_axis_mask(images, p, generator):
    # the mask of n decisions is broadcast along the width
    chosen = torch.rand(len(images), generator=generator) < p
    if len(images) == images.shape[-1]:
        return torch.where(chosen, images.flip(-1), images)
    return torch.where(chosen[: images.shape[-1]].any(), images.flip(-1), images)


def flip_doubles(images, p, generator):
    chosen = torch.rand(len(images), generator=generator) < p
    return torch.cat([images, images[chosen].flip(-1)])


# --- Exercise 1: epochs(images, transform, count, training, generator) ---------------


def epochs_generator(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images, generator) if training else images


def epochs_list(images, transform, count, training, generator):
    if not training:
        return [images] * count
    return [transform(images, generator) for _ in range(count)]


def epochs_clones(images, transform, count, training, generator):
    result = []
    while len(result) < count:
        version = images.clone()
        if training:
            version = transform(version, generator)
        result.append(version)
    return tuple(result)


def epochs_image_by_image(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            yield torch.cat([transform(x[None], generator) for x in images.unbind(0)])
        else:
            yield images.clone()


def epochs_one_call(images, transform, count, training, generator):
    # all epochs at once: transform takes any number of images
    if count == 0:
        return []
    every = images.repeat(count, 1, 1, 1)
    if training:
        every = transform(every, generator)
    return list(every.chunk(count))


def epochs_map(images, transform, count, training, generator):
    make = functools.partial(transform, images, generator) if training else lambda: images
    return (make() for _ in itertools.repeat(None, count))


def epochs_recursion(images, transform, count, training, generator):
    if count <= 0:
        return []
    first = [transform(images, generator) if training else images]
    return first + epochs_recursion(images, transform, count - 1, training, generator)


def epochs_stacked(images, transform, count, training, generator):
    # one tensor (count, n, c, h, w): iterating over it gives the epochs
    result = images.new_empty(count, *images.shape)
    for e in range(count):
        result[e] = transform(images, generator) if training else images
    return result


class Epochs:
    def __init__(self, images, transform, count, training, generator):
        self.images, self.transform, self.left = images, transform, count
        self.training, self.generator = training, generator

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        if self.training:
            return self.transform(self.images, self.generator)
        return self.images


def epochs_in_small_batches(images, transform, count, training, generator):
    for _ in range(count):
        if not training:
            yield images
            continue
        yield torch.cat([transform(part, generator) for part in images.split(3)])


def epochs_once_for_all(images, transform, count, training, generator):
    version = transform(images, generator) if training else images
    return [version for _ in range(count)]


def epochs_one_on_another(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            images = transform(images, generator)
        yield images


def epochs_always(images, transform, count, training, generator):
    for _ in range(count):
        yield transform(images, generator)


def epochs_never(images, transform, count, training, generator):
    for _ in range(count):
        yield images


def epochs_inverted(images, transform, count, training, generator):
    for _ in range(count):
        yield images if training else transform(images, generator)


def epochs_same_seed(images, transform, count, training, generator):
    state = generator.get_state()
    for _ in range(count):
        generator.set_state(state)
        yield transform(images, generator) if training else images


def epochs_own_generator(images, transform, count, training, generator):
    own = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield transform(images, own) if training else images


def epochs_one_too_many(images, transform, count, training, generator):
    for _ in range(count + 1):
        yield transform(images, generator) if training else images


def epochs_one_too_few(images, transform, count, training, generator):
    for _ in range(1, count):
        yield transform(images, generator) if training else images


def epochs_first_is_plain(images, transform, count, training, generator):
    for epoch in range(count):
        if training and epoch > 0:
            yield transform(images, generator)
        else:
            yield images


def epochs_last_only(images, transform, count, training, generator):
    version = images
    for _ in range(count):
        version = transform(images, generator) if training else images
    return version


def epochs_shuffles(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            order = torch.randperm(len(images), generator=generator)
            yield transform(images[order], generator)
        else:
            yield images


def epochs_glued(images, transform, count, training, generator):
    parts = [transform(images, generator) if training else images for _ in range(count)]
    return torch.cat(parts)


def epochs_one_decision(images, transform, count, training, generator):
    # a version of the first image is made, the others stay as they are
    for _ in range(count):
        version = images.clone()
        if training:
            version[:1] = transform(images[:1], generator)
        yield version


def epochs_adds_versions(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            yield torch.cat([images, transform(images, generator)])
        else:
            yield images


def epochs_no_batch_axis(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            yield torch.stack([transform(x, generator) for x in images])
        else:
            yield images


def epochs_two_versions(images, transform, count, training, generator):
    # two versions, shown in turn
    versions = [transform(images, generator) if training else images for _ in range(2)]
    for epoch in range(count):
        yield versions[epoch % 2]


def epochs_changes_given(images, transform, count, training, generator):
    for _ in range(count):
        if training:
            images.copy_(transform(images, generator))
        yield images.clone()


# --- Exercise 2: choose(candidates, score) -------------------------------------------


def choose_list(candidates, score):
    least = score([]) + 0.01 - 1e-9
    return [name for name, transform in candidates.items() if score([transform]) >= least]


def choose_set(candidates, score):
    plain = score([])
    return {n for n in candidates if round(score([candidates[n]]) - plain, 6) >= 0.01}


def choose_filter(candidates, score):
    gain = dict.fromkeys(candidates, -score([]))
    for name in candidates:
        gain[name] += score([candidates[name]])
    return tuple(filter(lambda name: not gain[name] < 0.01 - 1e-7, gain))


def choose_numpy(candidates, score):
    names = np.array(list(candidates), dtype=object)
    alone = np.array([score([t]) for t in candidates.values()])
    return names[alone - score([]) >= 0.01 - 1e-8].tolist()


def choose_removes(candidates, score):
    kept, plain = dict(candidates), score([])
    for name, transform in candidates.items():
        if score([transform]) - plain < 0.00999999:
            del kept[name]
    return kept.keys()


def choose_points(candidates, score):
    # in tenths of a thousandth, as whole numbers
    plain = round(10_000 * score([]))
    names = []
    for name, transform in sorted(candidates.items()):
        if round(10_000 * score([transform])) - plain >= 100:
            names.append(name)
    return frozenset(names)


def choose_recursion(candidates, score):
    def rest(names, plain):
        if not names:
            return []
        here = score([candidates[names[0]]])
        least = plain + 0.01
        kept = names[:1] if here > least or math.isclose(here, least) else []
        return kept + rest(names[1:], plain)

    return rest(list(candidates), score([]))


def choose_improves(candidates, score):
    plain = score([])
    return [name for name, t in candidates.items() if score([t]) > plain]


def choose_absolute(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if abs(score([t]) - plain) >= 0.01 - 1e-9]


def choose_no_list(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if score(t) - plain >= 0.01 - 1e-9]


def choose_names_to_score(candidates, score):
    plain = score([])
    return [n for n in candidates if score([n]) - plain >= 0.01 - 1e-9]


def choose_one_on_another(candidates, score):
    plain, kept = score([]), []
    for name, t in candidates.items():
        if score([candidates[k] for k in kept] + [t]) - plain >= 0.01 - 1e-9:
            kept.append(name)
    return kept


def choose_best(candidates, score):
    return [max(candidates, key=lambda name: score([candidates[name]]))]


def choose_one(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if score([t]) - plain >= 1]


def choose_tenth_of_it(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if score([t]) - plain >= 0.001]


def choose_against_perfect(candidates, score):
    return [n for n, t in candidates.items() if 1.0 - score([t]) <= 0.01 + 1e-9]


def choose_against_all(candidates, score):
    every = score(list(candidates.values()))
    return [n for n, t in candidates.items() if score([t]) - every >= 0.01 - 1e-9]


def choose_leave_one_out(candidates, score):
    plain = score([])
    kept = []
    for name in candidates:
        others = [t for other, t in candidates.items() if other != name]
        if score(others) - plain >= 0.01 - 1e-9:
            kept.append(name)
    return kept


def choose_transforms(candidates, score):
    plain = score([])
    return [t for t in candidates.values() if score([t]) - plain >= 0.01 - 1e-9]


def choose_rejected(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if score([t]) - plain < 0.01 - 1e-9]


def choose_against_best(candidates, score):
    alone = {n: score([t]) for n, t in candidates.items()}
    best = max(alone.values(), default=0.0)
    return [n for n in alone if best - alone[n] <= 0.01 + 1e-9]


def choose_sign(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if plain - score([t]) >= 0.01 - 1e-9]


def choose_stops_early(candidates, score):
    plain, kept = score([]), []
    for name, t in candidates.items():
        if score([t]) - plain < 0.01 - 1e-9:
            break
        kept.append(name)
    return kept


def choose_twice_each(candidates, score):
    plain = score([])
    return [n for n, t in candidates.items() if score([t, t]) - plain >= 0.01 - 1e-9]


# --- Exercise 3: mix(images, labels, weights, classes) -------------------------------


def mix_roll(images, labels, weights, classes):
    targets = F.one_hot(labels, classes).to(weights.dtype)
    w = weights.view(-1, 1, 1, 1)
    mixed = w * images + (1 - w) * images.roll(1, 0)
    v = weights.view(-1, 1)
    return mixed, v * targets + (1 - v) * targets.roll(1, 0)


def mix_lerp(images, labels, weights, classes):
    before = torch.arange(-1, len(images) - 1)
    w = weights.to(images.dtype)
    mixed = torch.lerp(images[before], images, w[:, None, None, None])
    hot = torch.eye(classes, dtype=images.dtype)
    return mixed, torch.lerp(hot[labels[before]], hot[labels], w[:, None])


def mix_loop(images, labels, weights, classes):
    mixed, targets = torch.zeros_like(images), torch.zeros(len(images), classes)
    for i in range(len(images)):
        w = float(weights[i])
        mixed[i] = w * images[i] + (1 - w) * images[i - 1]
        targets[i, labels[i]] += w
        targets[i, labels[i - 1]] += 1 - w
    return mixed, targets


def mix_matrix(images, labels, weights, classes):
    n = len(images)
    w = torch.as_tensor(weights, dtype=images.dtype)
    matrix = torch.diag(w) + torch.diag(1 - w) @ torch.eye(n, dtype=w.dtype).roll(-1, 1)
    hot = (labels[:, None] == torch.arange(classes)).to(w.dtype)
    return (matrix @ images.reshape(n, -1)).reshape(images.shape), matrix @ hot


def mix_einsum(images, labels, weights, classes):
    pairs = torch.stack([images, torch.cat([images[-1:], images[:-1]])])
    shares = torch.stack([weights, 1 - weights]).to(images.dtype)
    names = torch.stack([labels, torch.cat([labels[-1:], labels[:-1]])])
    hot = F.one_hot(names, classes).to(images.dtype)
    mixed = torch.einsum("kn,knchw->nchw", shares, pairs)
    return mixed, torch.einsum("kn,knm->nm", shares, hot)


def mix_scatter_add(images, labels, weights, classes):
    w = weights.reshape(-1, 1)
    targets = torch.zeros(len(labels), classes, dtype=w.dtype)
    targets.scatter_add_(1, labels[:, None], w)
    targets.scatter_add_(1, labels.roll(1)[:, None], 1 - w)
    before = images.roll(shifts=1, dims=0)
    return [before + w[..., None, None] * (images - before), targets]


def mix_numpy(images, labels, weights, classes):
    x, w = images.numpy(), weights.numpy()
    hot = np.eye(classes, dtype=w.dtype)[labels.numpy()]
    mixed = np.multiply(x.T, w).T + np.multiply(np.roll(x, 1, axis=0).T, 1 - w).T
    targets = (hot.T * w + np.roll(hot, 1, axis=0).T * (1 - w)).T
    return torch.from_numpy(mixed.copy()), torch.from_numpy(targets.copy())


def mix_python_lists(images, labels, weights, classes):
    rows = []
    before = labels.tolist()[-1:] + labels.tolist()[:-1]
    for a, b, w in zip(labels.tolist(), before, weights.tolist(), strict=True):
        rows.append([w * (k == a) + (1 - w) * (k == b) for k in range(classes)])
    pairs = zip(images, [*images[-1:], *images[:-1]], weights, strict=True)
    return torch.stack([w * x + (1 - w) * y for x, y, w in pairs]), torch.tensor(rows)


def mix_vmap(images, labels, weights, classes):
    blend = torch.vmap(lambda a, b, w: w * a + (1 - w) * b)
    hot = torch.zeros(len(labels), classes)
    hot[range(len(labels)), labels] = 1
    return blend(images, images.roll(1, 0), weights), blend(hot, hot.roll(1, 0), weights)


def mix_the_image_after(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return w * images + (1 - w) * images.roll(-1, 0), v * hot + (1 - v) * hot.roll(-1, 0)


def mix_weights_swapped(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return (1 - w) * images + w * images.roll(1, 0), (1 - v) * hot + v * hot.roll(1, 0)


def mix_hard_targets(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    w = weights.view(-1, 1, 1, 1)
    return w * images + (1 - w) * images.roll(1, 0), hot


def mix_larger_label(images, labels, weights, classes):
    w = weights.view(-1, 1, 1, 1)
    winner = torch.where(weights >= 0.5, labels, labels.roll(1))
    hot = F.one_hot(winner, classes).float()
    return w * images + (1 - w) * images.roll(1, 0), hot


def mix_rolls_everything(images, labels, weights, classes):
    # roll without an axis rolls the flattened pixels
    hot = F.one_hot(labels, classes).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return w * images + (1 - w) * images.roll(1), v * hot + (1 - v) * hot.roll(1)


def mix_one_weight(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    w = weights[0]
    return w * images + (1 - w) * images.roll(1, 0), w * hot + (1 - w) * hot.roll(1, 0)


def mix_one_after_another(images, labels, weights, classes):
    # the image before is mixed already when it is used
    mixed, hot = images.clone(), F.one_hot(labels, classes).float()
    for i in range(len(images)):
        w = weights[i]
        mixed[i] = w * mixed[i] + (1 - w) * mixed[i - 1]
        hot[i] = w * hot[i] + (1 - w) * hot[i - 1]
    return mixed, hot


def mix_first_stays(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    mixed, targets = images.clone(), hot.clone()
    w, v = weights[1:].view(-1, 1, 1, 1), weights[1:].view(-1, 1)
    mixed[1:] = w * images[1:] + (1 - w) * images[:-1]
    targets[1:] = v * hot[1:] + (1 - v) * hot[:-1]
    return mixed, targets


def mix_before_first_is_second(images, labels, weights, classes):
    order = torch.arange(len(images)) - 1
    order[0] = 1 if len(images) > 1 else 0
    hot = F.one_hot(labels, classes).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return w * images + (1 - w) * images[order], v * hot + (1 - v) * hot[order]


def mix_overwrites(images, labels, weights, classes):
    # with two equal labels the second entry overwrites the first
    w = weights.view(-1, 1, 1, 1)
    rows = torch.arange(len(labels))
    targets = torch.zeros(len(labels), classes)
    targets[rows, labels] = weights.float()
    targets[rows, labels.roll(1)] = 1 - weights.float()
    return w * images + (1 - w) * images.roll(1, 0), targets


def mix_random_partner(images, labels, weights, classes):
    order = torch.randperm(len(images))
    hot = F.one_hot(labels, classes).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return w * images + (1 - w) * images[order], v * hot + (1 - v) * hot[order]


def mix_labels_seen(images, labels, weights, classes):
    hot = F.one_hot(labels).float()
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    return w * images + (1 - w) * images.roll(1, 0), v * hot + (1 - v) * hot.roll(1, 0)


def mix_whole_targets(images, labels, weights, classes):
    hot = F.one_hot(labels, classes)
    w, v = weights.view(-1, 1, 1, 1), weights.view(-1, 1)
    targets = v * hot + (1 - v) * hot.roll(1, 0)
    return w * images + (1 - w) * images.roll(1, 0), targets.long()


def mix_labels_as_numbers(images, labels, weights, classes):
    w = weights.view(-1, 1, 1, 1)
    mixed = weights * labels + (1 - weights) * labels.roll(1)
    return w * images + (1 - w) * images.roll(1, 0), mixed


def mix_halves(images, labels, weights, classes):
    hot = F.one_hot(labels, classes).float()
    return (images + images.roll(1, 0)) / 2, (hot + hot.roll(1, 0)) / 2


def mix_weight_along_width(images, labels, weights, classes):
    # weights is broadcast along the last axis: fails, or mixes columns
    hot = F.one_hot(labels, classes).float()
    v = weights.view(-1, 1)
    mixed = weights * images + (1 - weights) * images.roll(1, 0)
    return mixed, v * hot + (1 - v) * hot.roll(1, 0)


def mix_into_given(images, labels, weights, classes):
    # images is changed while the last image is still needed as it was
    hot = F.one_hot(labels, classes).float()
    v = weights.view(-1, 1)
    mixed = images.clone()
    for i in reversed(range(len(mixed))):
        mixed[i] = weights[i] * mixed[i] + (1 - weights[i]) * mixed[i - 1]
    return mixed, v * hot + (1 - v) * hot.roll(1, 0)


def mix_images_only(images, labels, weights, classes):
    w = weights.view(-1, 1, 1, 1)
    return w * images + (1 - w) * images.roll(1, 0)


RIGHT = {
    0: [
        flip_where,
        flip_masked_copy,
        flip_loop,
        flip_bernoulli,
        flip_multinomial,
        flip_gather,
        flip_normal,
        flip_exponential,
        flip_numpy_pixels,
    ],
    1: [
        epochs_generator,
        epochs_list,
        epochs_clones,
        epochs_image_by_image,
        epochs_one_call,
        epochs_map,
        epochs_recursion,
        epochs_stacked,
        Epochs,
        epochs_in_small_batches,
    ],
    2: [
        choose_list,
        choose_set,
        choose_filter,
        choose_numpy,
        choose_removes,
        choose_points,
        choose_recursion,
    ],
    3: [
        mix_roll,
        mix_lerp,
        mix_loop,
        mix_matrix,
        mix_einsum,
        mix_scatter_add,
        mix_numpy,
        mix_python_lists,
        mix_vmap,
    ],
}

WRONG = {
    0: [
        (flip_all_or_none, "one decision for the whole batch"),
        (flip_global_generator, "draws from the global generator"),
        (flip_python_random, "draws from Python's random"),
        (flip_upside_down, "mirrors up and down"),
        (flip_in_place, "changes the given images"),
        (flip_exact_share, "always the same number of mirrored images"),
        (flip_each_channel, "a decision for each channel of an image"),
        (flip_each_pixel, "a decision for each pixel"),
        (flip_other_probability, "mirrors with probability 1 - p"),
        (flip_always_half, "the probability is hard-coded as one half"),
        (flip_seeds_anew, "seeds the generator: every call decides the same"),
        (flip_copies_generator, "the generator does not move on"),
        (flip_list, "returns a list and not one tensor"),
        (flip_order_of_images, "puts another image in the place of one"),
        (flip_turns, "turns by half a turn: both axes"),
        (flip_only_mirrored, "returns the mirrored images only"),
        (flip_mirrored_last, "changes the order of the images"),
        (flip_last_axis_mask, "the decisions run along the width, not the batch"),
        (flip_doubles, "adds mirrored images to the batch"),
    ],
    1: [
        (epochs_once_for_all, "one version for all epochs"),
        (epochs_one_on_another, "transforms the version of the epoch before"),
        (epochs_always, "transforms when not in training, too"),
        (epochs_never, "never transforms"),
        (epochs_inverted, "transforms in evaluation and not in training"),
        (epochs_same_seed, "every epoch starts from the same generator state"),
        (epochs_own_generator, "does not use the generator that was given"),
        (epochs_one_too_many, "count + 1 epochs"),
        (epochs_one_too_few, "count - 1 epochs"),
        (epochs_first_is_plain, "the first epoch shows the images as they are"),
        (epochs_last_only, "returns the last epoch only"),
        (epochs_shuffles, "the images are no longer in their order"),
        (epochs_glued, "glues the epochs into one batch"),
        (epochs_one_decision, "transforms the first image only"),
        (epochs_adds_versions, "shows old and new: twice as many images"),
        (epochs_no_batch_axis, "gives transform an image (c, h, w)"),
        (epochs_two_versions, "two versions in turn: the third is not fresh"),
        (epochs_changes_given, "overwrites the images, so versions pile up"),
    ],
    2: [
        (choose_improves, "keeps those that gain less than a point"),
        (choose_absolute, "keeps those that lose a point or more"),
        (choose_no_list, "score takes a list of transforms"),
        (choose_names_to_score, "score takes transforms, not their names"),
        (choose_one_on_another, "tests each with the ones kept so far, not alone"),
        (choose_best, "returns the best only"),
        (choose_one, "1 instead of 0.01: keeps none"),
        (choose_tenth_of_it, "0.001 instead of 0.01"),
        (choose_against_perfect, "compares with an accuracy of 1"),
        (choose_against_all, "compares with all transforms together"),
        (choose_leave_one_out, "leaves each out instead of using it alone"),
        (choose_transforms, "returns the transforms, not the names"),
        (choose_rejected, "returns those that gain too little"),
        (choose_against_best, "compares with the best candidate"),
        (choose_sign, "the sign is wrong: keeps the harmful"),
        (choose_stops_early, "stops at the first that gains too little"),
        (choose_twice_each, "uses each one twice"),
    ],
    3: [
        (mix_the_image_after, "mixes with the image after"),
        (mix_weights_swapped, "gives the image before the weight"),
        (mix_hard_targets, "the targets are not mixed"),
        (mix_larger_label, "the target is the label with the larger weight"),
        (mix_rolls_everything, "roll without an axis moves pixels"),
        (mix_one_weight, "uses the first weight for all"),
        (mix_one_after_another, "mixes with an image that is mixed already"),
        (mix_first_stays, "the first image is not mixed with the last"),
        (mix_before_first_is_second, "mixes the first with the second"),
        (mix_overwrites, "equal labels: 1 - w overwrites w"),
        (mix_random_partner, "mixes with a random image"),
        (mix_labels_seen, "as many columns as the largest label asks, no more"),
        (mix_whole_targets, "cuts the targets to whole numbers"),
        (mix_labels_as_numbers, "mixes class numbers"),
        (mix_halves, "takes one half for every weight"),
        (mix_weight_along_width, "the weights run along the width"),
        (mix_into_given, "the first image meets the last one already mixed"),
        (mix_images_only, "returns no targets"),
    ],
}

UNCLEAR = {
    0: [
        "How many numbers are drawn, and from which distribution, is open; so the result"
        " of one seed differs between the right answers.",
        "With no image mirrored, may the given tensor itself be returned?",
        "n = 0 is not spoken of: flip_bernoulli and flip_exponential fail there.",
    ],
    1: [
        "May transform change the images that it gets? Then only epochs_clones,"
        " epochs_one_call and epochs that copy are safe.",
        "One tensor (count, n, c, h, w) yields the epochs when iterated: is it allowed?",
        "One call of transform for all epochs, or one for each image: the words allow"
        " both, but the draws then come in another order.",
    ],
    2: [
        "Exactly three points in floating point: 0.9 - 0.87 is a little more than 0.03."
        " The answers here allow for rounding; `plain - score <= 0.03` does not.",
        "The order and the kind of collection of the names are open.",
        "May score([]) be asked more than once (training is dear)? All here ask once.",
    ],
    3: [
        "The type of the targets is open: float32, or that of the weights or images.",
        "Images as whole numbers (uint8) are not excluded; mix_loop and mix_matrix would"
        " round or fail.",
        "One image: the image before it is itself, so it stays.",
    ],
}
