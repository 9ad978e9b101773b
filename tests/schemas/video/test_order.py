"""Pictures that are files are in the order of the numbers in their names."""

import pytest

from schemas.video.errors import VideoError
from schemas.video.order import in_picture_order, number_key, stems


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10.png", "9.png", "1.png", "0.png"], ["0.png", "1.png", "9.png", "10.png"]),
        (["00010.jpg", "00002.jpg"], ["00002.jpg", "00010.jpg"]),
        (["img10.JPG", "img9.jpg"], ["img9.jpg", "img10.JPG"]),
        (["b_2_10.png", "b_2_9.png", "a_3_1.png"], ["a_3_1.png", "b_2_9.png", "b_2_10.png"]),
        (["._1.png", "1.png", "notes.txt", ".DS_Store", "2.PNG"], ["1.png", "2.PNG"]),
        (["b.png", "a.png"], ["a.png", "b.png"]),
        (["1" * 200 + ".png", "2.png"], ["2.png", "1" * 200 + ".png"]),
        ([], []),
    ],
)
def test_a_folder_is_in_the_order_of_its_numbers(names, ordered):
    assert in_picture_order(names) == ordered


@pytest.mark.parametrize(
    "pair", [("1.png", "01.png"), ("7.jpg", "7.png"), ("a1b.png", "a001b.jpg")]
)
def test_two_files_for_one_number_are_refused(pair):
    with pytest.raises(VideoError, match="same number"):
        in_picture_order(["0.png", *pair])


def test_stems_and_keys():
    assert stems(["00001.jpg", "a.b.png"]) == ("00001", "a.b")
    assert number_key("take2_007") > number_key("take2_06")
    assert number_key("take10") > number_key("take9")
    assert number_key("7") == number_key("007")
