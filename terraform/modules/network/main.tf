locals {
  make_network = var.network_id == ""
  make_router  = local.make_network && var.router_id == ""

  # HTTP and HTTPS from everywhere, SSH from where the admins are, nothing else.
  rules = merge(
    { for pair in setproduct([80, 443], ["0.0.0.0/0", "::/0"]) : "${pair[0]} from ${pair[1]}" => { port = pair[0], from = pair[1] } },
    { for from in var.admin_networks : "22 from ${from}" => { port = 22, from = from } },
  )
}

resource "openstack_networking_network_v2" "lab" {
  count       = local.make_network ? 1 : 0
  name        = "${var.name}-network"
  description = "labtrack: ${var.name}"
}

resource "openstack_networking_subnet_v2" "lab" {
  count      = local.make_network ? 1 : 0
  name       = "${var.name}-subnet"
  network_id = openstack_networking_network_v2.lab[0].id
  cidr       = var.cidr
  ip_version = 4
}

resource "openstack_networking_router_v2" "lab" {
  count               = local.make_router ? 1 : 0
  name                = "${var.name}-router"
  external_network_id = var.external_network_id
}

resource "openstack_networking_router_interface_v2" "lab" {
  count     = local.make_network ? 1 : 0
  router_id = local.make_router ? openstack_networking_router_v2.lab[0].id : var.router_id
  subnet_id = openstack_networking_subnet_v2.lab[0].id
}

# The default rules that Neutron adds let a machine out (metadata, packages, the object store): they stay.
resource "openstack_networking_secgroup_v2" "server" {
  name        = "${var.name}-server"
  description = "HTTPS and HTTP from everywhere, SSH from the admins"
}

resource "openstack_networking_secgroup_rule_v2" "in" {
  for_each          = local.rules
  security_group_id = openstack_networking_secgroup_v2.server.id
  description       = each.key
  direction         = "ingress"
  ethertype         = strcontains(each.value.from, ":") ? "IPv6" : "IPv4"
  protocol          = "tcp"
  port_range_min    = each.value.port
  port_range_max    = each.value.port
  remote_ip_prefix  = each.value.from
}
