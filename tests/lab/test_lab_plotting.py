"""Each plot takes an axes and returns it; a figure has words for those who cannot see it."""

import matplotlib

matplotlib.use("Agg")

import pytest

from dlcourse.lab import plotting


def test_every_plot_returns_its_axes():
    fig, axes = plotting.figure(4, width=14)
    assert (
        plotting.curves(axes[0], [0, 1], {"a": [1, 2]}, bands={"a": ([0, 1], [2, 3])})
        is axes[0]
    )
    assert plotting.paired_dots(axes[1], {"a": [1, 2], "b": [2, 3]}) is axes[1]
    assert plotting.heat_map(axes[2], [[1, 2]], ["r"], ["a", "b"]) is axes[2]
    assert plotting.intervals(axes[3], {"a": (1, 0, 2), "b": (0, -1, 1)}) is axes[3]
    plotting.show(fig, "four small plots, side by side")


def test_maps_with_the_same_limits_have_one_colour_scale():
    fig, axes = plotting.figure(2)
    for ax, values in zip(axes, ([[0.2, 0.4]], [[0.6, 0.9]]), strict=True):
        plotting.heat_map(
            ax, values, ["r"], ["a", "b"], spread=[[0.01, 0.02]], limits=(0.1, 1.0)
        )
        assert ax.images[0].get_clim() == (0.1, 1.0)
    assert [text.get_text() for text in axes[1].texts] == ["0.60\n±0.01", "0.90\n±0.02"]
    plotting.show(fig, "two maps with one scale and a spread")


def test_show_needs_a_caption_and_prints_it(capsys):
    fig, _ = plotting.figure()
    with pytest.raises(ValueError, match="caption"):
        plotting.show(fig, "a plot")
    plotting.show(fig, "an empty plot with two axes")
    assert "Figure: an empty plot with two axes" in capsys.readouterr().out


def test_lines_differ_in_colour_and_dash():
    assert len(set(plotting.COLORS)) == len(plotting.COLORS) == len(set(plotting.DASHES))


def test_the_caption_stands_below_the_picture_and_is_its_alternative_text(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(
        IPython.display, "display", lambda data, **more: shown.append((data, more))
    )
    fig, _ = plotting.figure()
    plotting.show(fig, "an empty plot with two axes")
    (picture, more), (below, _) = shown
    assert more["metadata"] == {"image/png": {"alt": "an empty plot with two axes"}}
    assert below["text/markdown"] == "*an empty plot with two axes*"
    assert "image/png" in picture and "image/png" not in below
