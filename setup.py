"""Packaging metadata; pyproject.toml holds the tools' settings only."""

from keyword import iskeyword
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "her2net" / "version.py").read_text(encoding="utf-8").split('__version__ = "')[1].split('"')[0]
COMMANDS = (
    "verify", "plan", "train", "ensemble", "fuse", "predict", "evaluate", "report", "explain", "selftest", "run", "demo",
    "status", "export", "import",
)  # fmt: skip

setup(
    name="her2net",
    version=VERSION,
    description="Self-configuring classification of medical images: ultrasound, MRI and their fusion",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["her2net", "her2net.*"]),
    package_data={"her2net.report": ["*.json", "templates/*"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "monai>=1.5",
        "timm>=1.0.15",
        "SimpleITK>=2.4",
        "Pillow>=10.3",
        "scikit-learn>=1.5",
        "numpy>=1.26",
        "scipy>=1.13",
        "statsmodels>=0.14.4",
        "matplotlib>=3.9",
        "jinja2>=3.1",
        "h5py>=3.11",
        "psutil>=5.9.8",
        "pydantic>=2.8",
        "safetensors>=0.4.3",
        "tqdm>=4.66",
    ],
    extras_require={
        "dev": ["pytest>=8", "pytest-timeout>=2.4", "pytest-xdist>=3.8", "hypothesis>=6.100", "ruff>=0.6", "mypy>=1.11",
                "filelock>=3.12", "batchgenerators>=0.25.1"],
        "batchgenerators": ["batchgenerators>=0.25.1"],
        "browser": ["selenium>=4.51"],
        "radiomics": ['mirp>=2.4; python_version >= "3.11"'],
    },
    entry_points={"console_scripts": [f"her2net_{c} = her2net.cli.{c}{'_' * iskeyword(c)}:main" for c in COMMANDS]},
)
