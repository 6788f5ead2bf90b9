"""The subsets of MedMNIST v2 with flat images of 28 pixels (Yang et al. 2023, doi 10.1038/s41597-022-01721-8).

All figures are those of ``medmnist/info.py`` 3.0.2, whose MD5 are of the .npz files in Zenodo's record 10519652.
ChestMNIST is not among them: an image of it has any number of labels. The grades of RetinaMNIST are taken as classes,
as its authors' own code does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subset:
    """One of the data sets, as it was published."""

    md5: str  # of its .npz file
    channels: int
    num_train: int
    num_val: int
    num_test: int
    classes: tuple[str, ...]  # in label order


ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)
SUBSETS = {
    "pathmnist": Subset(
        md5="a8b06965200029087d5bd730944a56c1",
        channels=3,
        num_train=89_996,
        num_val=10_004,
        num_test=7_180,
        classes=(
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "dermamnist": Subset(
        md5="0744692d530f8e62ec473284d019b0c7",
        channels=3,
        num_train=7_007,
        num_val=1_003,
        num_test=2_005,
        classes=(
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
    ),
    "octmnist": Subset(
        md5="c68d92d5b585d8d81f7112f81e2d0842",
        channels=1,
        num_train=97_477,
        num_val=10_832,
        num_test=1_000,
        classes=(
            "choroidal neovascularization",
            "diabetic macular edema",
            "drusen",
            "normal",
        ),
    ),
    "pneumoniamnist": Subset(
        md5="28209eda62fecd6e6a2d98b1501bb15f",
        channels=1,
        num_train=4_708,
        num_val=524,
        num_test=624,
        classes=(
            "normal",
            "pneumonia",
        ),
    ),
    "retinamnist": Subset(
        md5="bd4c0672f1bba3e3a89f0e4e876791e4",
        channels=3,
        num_train=1_080,
        num_val=120,
        num_test=400,
        classes=(
            "0",
            "1",
            "2",
            "3",
            "4",
        ),
    ),
    "breastmnist": Subset(
        md5="750601b1f35ba3300ea97c75c52ff8f6",
        channels=1,
        num_train=546,
        num_val=78,
        num_test=156,
        classes=(
            "malignant",
            "normal, benign",
        ),
    ),
    "bloodmnist": Subset(
        md5="7053d0359d879ad8a5505303e11de1dc",
        channels=3,
        num_train=11_959,
        num_val=1_712,
        num_test=3_421,
        classes=(
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
    ),
    "tissuemnist": Subset(
        md5="ebe78ee8b05294063de985d821c1c34b",
        channels=1,
        num_train=165_466,
        num_val=23_640,
        num_test=47_280,
        classes=(
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
    ),
    "organamnist": Subset(
        md5="68e3f8846a6bd62f0c9bf841c0d9eacc",
        channels=1,
        num_train=34_561,
        num_val=6_491,
        num_test=17_778,
        classes=ORGANS,
    ),
    "organcmnist": Subset(
        md5="b9ceb9546e10131b32923c5bbeaea2b1",
        channels=1,
        num_train=12_975,
        num_val=2_392,
        num_test=8_216,
        classes=ORGANS,
    ),
    "organsmnist": Subset(
        md5="9ab87b696fb54e2a387ebe992d6ed5f1",
        channels=1,
        num_train=13_932,
        num_val=2_452,
        num_test=8_827,
        classes=ORGANS,
    ),
}
