import pytest
import torch
from monai.networks.nets import BasicUNet, SwinUNETR, UNet
from torch import nn

from fl_client.privacy import require_private


def unet(norm):
    return UNet(spatial_dims=2, in_channels=1, out_channels=4, channels=(4, 8), strides=(2,), num_res_units=2, norm=norm)


@pytest.mark.parametrize(
    "norm",
    [("group", {"num_groups": 4}), ("group", {"num_groups": 4, "affine": False}), "instance", ("instance", {"affine": True})],
)
def test_networks_without_state_pass(norm):
    model = unet(norm)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    require_private(model)
    assert before.keys() == {name for name, _ in model.named_parameters()}  # nothing but parameters would leave
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", ("batch", {"affine": False}), ("batch", {"track_running_stats": False})])
def test_batch_norm_is_refused_whether_or_not_it_has_parameters(norm):
    with pytest.raises(TypeError, match=r"model\.\S+ is a BatchNorm2d.*use group normalisation"):
        require_private(unet(norm))


@pytest.mark.parametrize("affine", [True, False])
def test_running_statistics_are_refused(affine):
    with pytest.raises(TypeError, match="keeps running statistics"):
        require_private(unet(("instance", {"track_running_stats": True, "affine": affine})))


def test_sync_batch_norm_is_refused():
    with pytest.raises(TypeError, match="SyncBatchNorm"):
        require_private(nn.Sequential(nn.Conv2d(1, 4, 3), nn.SyncBatchNorm(4)))


def test_any_buffer_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    model.register_buffer("seen", torch.zeros(1))
    with pytest.raises(TypeError, match=r"buffers \(seen\)"):
        require_private(model)


def test_the_constant_position_index_of_swin_transformers_passes_and_a_buffer_beside_it_does_not():
    model = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2, norm_name="instance")
    require_private(model)
    model.swinViT.register_buffer("relative_position_index", torch.zeros(1))  # the name alone is no excuse
    with pytest.raises(TypeError, match=r"buffers \(swinViT.relative_position_index\)"):
        require_private(model)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
def test_spectral_norm_is_refused_in_both_its_forms(wrap):
    with pytest.raises(TypeError, match="spectral normalisation"):
        require_private(nn.Sequential(wrap(nn.Linear(3, 3))))


def test_layers_whose_shape_comes_from_data_are_refused():
    with pytest.raises(TypeError, match="first patient"):
        require_private(nn.Sequential(nn.LazyLinear(3)))


def test_in_place_layers_are_turned_into_the_same_layers_out_of_place():
    torch.manual_seed(0)
    model = BasicUNet(
        spatial_dims=2, in_channels=1, out_channels=4, features=(4, 4, 8, 8, 8, 4), norm=("group", {"num_groups": 4})
    )
    assert any(getattr(module, "inplace", False) for module in model.modules())
    x = torch.randn(2, 1, 32, 32)
    before = model.eval()(x)
    require_private(model)
    assert not any(getattr(module, "inplace", False) for module in model.modules())
    assert torch.equal(model(x), before)
