# Image for training on SageMaker, Vertex AI or any machine with Docker (docs/clusters.md):
#
#     docker build --tag lathe .                                       # torch with CUDA
#     docker build --tag lathe --build-arg UV_TORCH_BACKEND=cpu .      # a tenth of the size
#
# The image has no C++ compiler, so trainer.compile stays at its default, false.
FROM python:3.12.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 UV_SYSTEM_PYTHON=1 UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
ARG UV_TORCH_BACKEND
WORKDIR /opt/lathe

# What changes rarely comes first: packages are only reinstalled when pyproject.toml changes.
COPY pyproject.toml ./
RUN pip install --no-cache-dir uv==0.13.9 && uv pip install -r pyproject.toml

COPY train.py ./
COPY conf conf
COPY datamodules datamodules
COPY hydra_plugins hydra_plugins
COPY models models
COPY scripts scripts
COPY common common
COPY inference inference
COPY trainer trainer
RUN python -m compileall -q .

# Not root, but the owner of the folders that are written to. If the cloud mounts them as root: --build-arg USER=root
ARG USER=lathe
RUN useradd --create-home lathe && mkdir -p /opt/ml && chown -R lathe /opt/lathe /opt/ml
USER $USER

ENTRYPOINT ["python", "/opt/lathe/scripts/cloud_train.py"]
CMD ["train"]
