"""What assets are made with: models, database, image files, services."""

from resources import torchvision_import

torchvision_import.install_torchvision_shim()
