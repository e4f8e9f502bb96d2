import pytest
from small_ward import Ward, small_unet, some_patients


@pytest.fixture
def unet():
    return small_unet().double()


@pytest.fixture
def patients():
    return some_patients(5)


@pytest.fixture
def ward(patients):
    return Ward({f"p{i}": patient for i, patient in enumerate(patients)})
