import pytest

from ulna.networks.wiring import TOPOLOGIES, encoder, unet, unet3p, unetpp


def test_unetpp_has_the_nodes_of_figure_1():
    wiring = unetpp(5)
    assert len(wiring.nodes) == 15
    assert wiring.heads == ("x0_1", "x0_2", "x0_3", "x0_4")
    node = wiring.node("x1_2")  # zhou2018, Eq. 1: x[1,2] = H([x[1,0], x[1,1], U(x[2,1])])
    assert (node.source, node.skips) == ("x2_1", ("x1_0", "x1_1"))


@pytest.mark.parametrize(("head", "count"), [("x0_1", 3), ("x0_2", 6), ("x0_3", 10), ("x0_4", 15)])
def test_pruned_unetpp_keeps_the_nodes_with_i_plus_j_up_to_d(head, count):
    kept = {node.name for node in unetpp(5).keep(head).nodes}
    depth = int(head[-1])
    assert kept == {f"x{i}_{j}" for i in range(5) for j in range(5 - i) if i + j <= depth}
    assert len(kept) == count


def test_unet_is_the_outermost_diagonal_of_unetpp():
    grid = {node.name: node for node in unetpp(4).nodes}
    for node in unet(4).nodes:
        if node.path == "decoder":
            assert node.source == grid[node.name].source
            assert node.skips == grid[node.name].skips[:1]
    assert unet(4).heads == ("x2_1", "x1_2", "x0_3")


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_node_reads_earlier_nodes_and_fuses_its_own_level_or_all_levels(name, levels):
    wiring = TOPOLOGIES[name](levels)
    assert wiring.levels == levels
    seen = {}
    for node in wiring.nodes:
        assert node.source is None or node.source in seen
        if name == "unet3p" and node.path == "decoder":
            assert sorted(seen[one] for one in (node.source, *node.skips)) == list(range(levels))
        else:
            assert all(seen[skip] == node.level for skip in node.skips)
        seen[node.name] = node.level
    assert set(wiring.heads) <= set(seen)


def test_unet3p_reads_finer_encoder_nodes_and_deeper_decoder_nodes():
    """huang2020, Fig. 1c and Eq. 1: X_De^3 of five reads X_En^1, X_En^2, X_En^3, X_De^4 and X_En^5, which is X_De^5."""
    wiring = unet3p(5)
    node = wiring.node("x2_2")
    assert (node.source, node.skips) == ("x3_1", ("x0_0", "x1_0", "x2_0", "x4_0"))
    assert wiring.heads == ("x4_0", "x3_1", "x2_2", "x1_3", "x0_4")
    kept = wiring.keep("x3_1")
    assert {n.name for n in kept.nodes} == {"x0_0", "x1_0", "x2_0", "x3_0", "x4_0", "x3_1"}


def test_pyramid_is_the_last_node_of_every_level():
    assert encoder(3).pyramid == ("x0_0", "x1_0", "x2_0")
    assert unet(3).pyramid == ("x0_2", "x1_1", "x2_0")
