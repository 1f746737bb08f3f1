"""The benchmark of tenants, run small: that it measures what it says, not how much it is here."""

from benchmarks import tenants

TENANTS = 2_000


def test_a_second_round_grows_nothing_and_memory_is_given_back() -> None:
    figures = {figure.name: figure for figure in tenants.tenant_figures(TENANTS)}
    assert len(figures) == 12
    for kind in tenants.NAMES:
        growth = figures[f"{kind}: growth in a second round"].measured * TENANTS
        assert growth < 20_000  # the smallest thing that one tenant could leave behind is 16 bytes
        in_use, after = (figures[f"{kind}: {w}"].measured for w in ("in use", "after eviction"))
        assert 0 < after < in_use
