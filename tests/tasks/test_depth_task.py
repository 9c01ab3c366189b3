import numpy as np

from noise2map.tasks import TASKS


def test_depth_where_a_sample_says_it_is_not_valid_is_no_truth():
    depth = np.array([[1.0, 2.0]])
    found = TASKS["depth"].true_array({"depth_m": depth, "valid": np.array([[True, False]])})
    assert found.dtype == np.float32 and found.tolist() == [[1.0, 0.0]]
    assert TASKS["depth"].true_array({"depth_m": depth}).tolist() == [[1.0, 2.0]]
