"""Check a pod template against Kubernetes' restricted Pod Security Standard, for Linux.

The rules are those of https://kubernetes.io/docs/concepts/security/pod-security-standards/ and, for
image volumes, kubernetes/kubernetes#130394.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.manifests import containers

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_rmem", "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}  # fmt: skip
_SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_APPARMOR = {None, "RuntimeDefault", "Localhost"}
_SECCOMP = {"RuntimeDefault", "Localhost"}
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def violations(template: Mapping[str, Any]) -> list[str]:
    """Return each field of a pod template that the restricted profile does not allow."""
    pod = template["spec"]
    context = pod.get("securityContext", {})
    fields = [*_pod_fields(template), *_context_fields(context, "pod")]
    for container in containers(pod):
        name, container_context = container["name"], container.get("securityContext", {})
        fields += [
            f"{name}: {field}"
            for field in [
                *_context_fields(container_context, name),
                *_container_fields(container, container_context),
                # A container inherits the context of its pod.
                *_missing_fields({**context, **container_context}),
            ]
        ]
    return fields


def _pod_fields(template: Mapping[str, Any]) -> Iterator[str]:
    pod = template["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes", ()):
        if not volume.keys() - {"name"} <= _VOLUMES:
            yield f"volume {volume['name']}"
    for sysctl in pod.get("securityContext", {}).get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for name, value in template.get("metadata", {}).get("annotations", {}).items():
        allowed = value == "runtime/default" or value.startswith("localhost/")
        if name.startswith("container.apparmor.security.beta.kubernetes.io/") and not allowed:
            yield name


def _context_fields(context: Mapping[str, Any], owner: str) -> Iterator[str]:
    """Yield the fields of a security context that neither a pod nor a container may set."""
    linux = context.get("seLinuxOptions", {})
    seccomp = context.get("seccompProfile", {}).get("type", "RuntimeDefault")
    forbidden = {
        "windowsOptions.hostProcess": context.get("windowsOptions", {}).get("hostProcess"),
        "seLinuxOptions.type": linux.get("type") not in _SELINUX,
        "seLinuxOptions.user": linux.get("user"),
        "seLinuxOptions.role": linux.get("role"),
        "appArmorProfile": context.get("appArmorProfile", {}).get("type") not in _APPARMOR,
        "seccompProfile": seccomp not in _SECCOMP,
        "runAsNonRoot": context.get("runAsNonRoot") is False,
        "runAsUser": context.get("runAsUser") == 0,
    }
    return (f"{owner} sets {field}" for field, is_set in forbidden.items() if is_set)


def _container_fields(container: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[str]:
    capabilities = context.get("capabilities", {})
    hooks = [container.get(probe, {}) for probe in _PROBES]
    hooks += container.get("lifecycle", {}).values()
    handlers = [hook.get(kind, {}) for hook in hooks for kind in ("httpGet", "tcpSocket")]
    forbidden = {
        "privileged": context.get("privileged"),
        "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation") is not False,
        "capabilities.drop": "ALL" not in capabilities.get("drop", ()),
        "capabilities.add": not set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
        "procMount": context.get("procMount", "Default") != "Default",
        "hostPort": any(port.get("hostPort") for port in container.get("ports", ())),
        "host of a probe or a hook": any(handler.get("host") for handler in handlers),
    }
    return (field for field, is_set in forbidden.items() if is_set)


def _missing_fields(context: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields that a container or its pod must set."""
    if context.get("runAsNonRoot") is not True:
        yield "no runAsNonRoot"
    if "type" not in context.get("seccompProfile", {}):
        yield "no seccompProfile"
