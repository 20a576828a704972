"""Graphs: batches of torch-geometric, alone, together, retrofitted, and without labels."""

import copy
import warnings

import pytest
import torch
from ittt import ITTT, Settings
from paperkit import UserError
from torch import nn
from torch.nn import functional as F

with warnings.catch_warnings(action="ignore"):  # it still calls torch.jit.script
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, GMMConv, global_mean_pool


class Graphs(nn.Module):
    """Two graph convolutions and a mean: one number per graph."""

    def __init__(self, features: int):
        super().__init__()
        self.first, self.second = GMMConv(features, 6, dim=2, kernel_size=2), GCNConv(6, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, data):
        assert "y" not in data, "the network sees no label"
        h = F.elu(self.first(data.x, data.edge_index, data.edge_attr))
        h = F.elu(self.second(h, data.edge_index))
        return self.out(global_mean_pool(h, data.batch))


def rings(*sizes, labels=True):
    """A batch of directed rings with two features per node and two per edge."""
    graphs = []
    for i, n in enumerate(sizes):
        edges = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
        graph = Data(x=draw(n, 2, seed=i), edge_index=edges, edge_attr=draw(n, 2, seed=9 + i).sigmoid())
        if labels:
            graph.y = torch.tensor([float(i)])
        graphs.append(graph)
    return Batch.from_data_list(graphs)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_signal_is_a_feature_of_every_node():
    graphs = rings(4, 7)
    net = ITTT(Graphs(2 + 1), "node", neutral=0.2)
    fed = copy.copy(graphs)
    del fed.y
    fed.x = torch.cat([graphs.x, torch.tensor([[5.0]] * 4 + [[6.0]] * 7)], 1)
    torch.testing.assert_close(net(graphs, torch.tensor([[5.0], [6.0]])), net.model(fed))
    assert graphs.x.shape == (11, 2)
    assert graphs.y.tolist() == [0, 1]


def test_graphs_alone_in_batches_and_one_by_one():
    torch.manual_seed(0)
    net = ITTT(Graphs(2 + 1), "node", neutral=0.2)
    graphs = rings(4, 7, 5)
    alone = [net.adapter(Settings(rollback=False))(graphs[i]) for i in range(3)]
    each = net.adapter(Settings(per="instance", rollback=False))(graphs)
    torch.testing.assert_close(each.prediction, torch.cat([found.prediction for found in alone]))
    together = net.adapter(Settings(rollback=False))(graphs)
    assert together.prediction.shape == (3, 1)
    assert not torch.allclose(together.prediction, each.prediction)
    torch.testing.assert_close(together.gap_before, each.gap_before)
    assert float(net.loss(graphs, graphs.y[:, None]).detach()) > 0


def test_predictions_per_node_are_fed_back_per_node():
    class Nodes(nn.Module):
        def __init__(self, features):
            super().__init__()
            self.first, self.out = GCNConv(features, 6), nn.Linear(6, 2)

        def forward(self, data):
            return self.out(F.elu(self.first(data.x, data.edge_index)))

    torch.manual_seed(0)
    net = ITTT(Nodes(2 + 2), "node", outputs=2, task="classes", neutral="uniform")
    graphs = rings(4, 7)
    together = net.adapter(Settings(rollback=False))(graphs)
    assert together.prediction.shape == (11, 2)
    assert together.gap_before.shape == (11,)
    first = net(graphs).detach()
    fed = net.injection(net.model, unlabelled(graphs), net.encoded(graphs, first.softmax(1)))
    torch.testing.assert_close(net(graphs, first.softmax(1)), fed)
    torch.testing.assert_close(together.gap_before, net.task.gap(first, fed).detach())
    each = net.adapter(Settings(per="instance", rollback=False))(graphs)
    alone = net.adapter(Settings(rollback=False))(graphs[1])
    torch.testing.assert_close(each.prediction[4:], alone.prediction)
    labels = torch.tensor([0, 1] * 5 + [0])
    assert float(net.loss(graphs, labels).detach()) > 0
    with pytest.raises(UserError, match="whole graphs"):
        net.adapter(Settings(gate=0.5), net.calibrate([graphs]))(graphs)


def test_retrofit_is_the_pretrained_network_exactly():
    torch.manual_seed(1)
    x, model = rings(4, 6), Graphs(2)
    expected = model(unlabelled(x)).detach()
    net = ITTT(model, "node", neutral=0.2, retrofit=True)
    assert torch.equal(net(x), expected)
    assert torch.equal(net(x, net.from_output(expected)), expected)
    net.loss(x, x.y[:, None]).backward()
    assert float(net.injection.branch.weight.grad.abs().sum()) > 0


def unlabelled(graphs):
    graphs = copy.copy(graphs)
    del graphs.y
    return graphs


class Sealed(Data):
    """Its label must not be read."""

    @property
    def y(self):
        raise AssertionError("the label was read")


def test_labels_of_graphs_are_never_read():
    torch.manual_seed(0)
    net = ITTT(Graphs(2 + 1), "node")
    sealed = Sealed(x=draw(5, 2), edge_index=torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]))
    sealed.edge_attr = draw(5, 2).sigmoid()
    with pytest.raises(AssertionError, match="was read"):
        _ = sealed.y
    assert net.adapter()(sealed).prediction.shape == (1, 1)


def test_graphs_without_edges_are_refused():
    lonely = Batch.from_data_list([Data(x=draw(3, 2), edge_index=torch.empty(2, 0, dtype=torch.long))])
    with pytest.raises(UserError, match="no edges"):
        ITTT(Graphs(3), "node").adapter()(lonely)
