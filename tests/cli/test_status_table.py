"""What `plumtree-quic status` prints, whatever members call their zones."""

from plumtree_quic.cli.control import _show


def test_a_zone_is_shown_as_it_is(capsys):
    member = {
        "node_id": "a",
        "state": "alive",
        "zone": "[red]eu[/]",
        "addresses": ["x:1"],
        "epoch": 1,
        "incarnation": 0,
    }
    answer = {
        "node_id": "a",
        "address": "x:1",
        "health": "healthy",
        "reasons": [],
        "members": [member],
        "peers": [],
    }
    _show(answer)
    assert "[red]eu[/]" in capsys.readouterr().out
