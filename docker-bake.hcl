// A target for each image. scripts/build.py gives the variables, from patches/upstream.toml and VERSION:
// python -m scripts.build --help. The tag with UPSTREAM moves, the one with VERSION stays what it is.
// In the registry the tags of cpu-amd64 become the manifest of both platforms: python -m scripts.publish --help.

variable "IMAGE" { default = "docker.io/devfox101/mt-photos-ml" }
variable "UPSTREAM" { default = "v2.5.6" } // bump keeps it
variable "VERSION" { default = "${UPSTREAM}-dev" }
variable "REVISION" { default = "" }

// by the tag where nobody gives a digest, for a build by hand: docker buildx bake cpu-amd64
variable "UPSTREAMS" { default = "ghcr.io/immich-app/immich-machine-learning" }
variable "BASE_CPU_AMD64" { default = "${UPSTREAMS}:${UPSTREAM}" }
variable "BASE_CPU_ARM64" { default = "${UPSTREAMS}:${UPSTREAM}" }
variable "BASE_CUDA" { default = "${UPSTREAMS}:${UPSTREAM}-cuda" }
variable "BASE_OPENVINO" { default = "${UPSTREAMS}:${UPSTREAM}-openvino" }
variable "BASE_ARMNN" { default = "${UPSTREAMS}:${UPSTREAM}-armnn" }
variable "BASE_RKNN" { default = "${UPSTREAMS}:${UPSTREAM}-rknn" }
variable "BASE_ROCM" { default = "${UPSTREAMS}:${UPSTREAM}-rocm" }

group "default" {
  targets = ["cpu", "cuda", "openvino", "armnn", "rknn", "rocm"]
}

group "cpu" {
  targets = ["cpu-amd64", "cpu-arm64"]
}

target "image" {
  context = "."
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
}

target "cpu-amd64" {
  inherits  = ["image"]
  platforms = ["linux/amd64"]
  args      = { BASE = BASE_CPU_AMD64 }
  tags      = ["${IMAGE}:${VERSION}", "${IMAGE}:${UPSTREAM}"]
}

target "cpu-arm64" {
  inherits  = ["image"]
  platforms = ["linux/arm64"]
  args      = { BASE = BASE_CPU_ARM64 }
  tags      = ["${IMAGE}:${VERSION}-arm", "${IMAGE}:${UPSTREAM}-arm"]
}

target "cuda" {
  inherits  = ["image"]
  platforms = ["linux/amd64"]
  args      = { BASE = BASE_CUDA }
  tags      = ["${IMAGE}:${VERSION}-cuda", "${IMAGE}:${UPSTREAM}-cuda"]
}

target "openvino" {
  inherits  = ["image"]
  platforms = ["linux/amd64"]
  args      = { BASE = BASE_OPENVINO }
  tags      = ["${IMAGE}:${VERSION}-openvino", "${IMAGE}:${UPSTREAM}-openvino"]
}

target "armnn" {
  inherits  = ["image"]
  platforms = ["linux/arm64"]
  args      = { BASE = BASE_ARMNN }
  tags      = ["${IMAGE}:${VERSION}-armnn", "${IMAGE}:${UPSTREAM}-armnn"]
}

target "rknn" {
  inherits  = ["image"]
  platforms = ["linux/arm64"]
  args      = { BASE = BASE_RKNN }
  tags      = ["${IMAGE}:${VERSION}-rknn", "${IMAGE}:${UPSTREAM}-rknn"]
}

target "rocm" {
  inherits  = ["image"]
  platforms = ["linux/amd64"]
  args      = { BASE = BASE_ROCM }
  tags      = ["${IMAGE}:${VERSION}-rocm", "${IMAGE}:${UPSTREAM}-rocm"]
}
